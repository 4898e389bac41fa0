//! Who a client is: tokens, key sets, and what a relay does with them in front of a real RabbitMQ.

mod attempts;
mod authenticator;
mod broker_mode;
mod issuer;
mod key_server;
mod key_sets;
mod lifetime;
mod relay_mode;
mod secrecy;
mod settings;
mod sources;
mod tokens;
