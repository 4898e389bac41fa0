//! What clients of RabbitMQ's STOMP plugins rely on, against a real RabbitMQ. Where the plugin and STOMP 1.2 differ, the
//! relay is started with `stomp.compatibility = "rabbitmq"`; elsewhere with its defaults.

mod connect;
mod errors;
mod frames;
mod virtual_hosts;
mod web;
