//! What clients of RabbitMQ's STOMP plugins rely on, against a real RabbitMQ. Where the plugin and STOMP 1.2 differ, the
//! relay is started with `stomp.compatibility = "rabbitmq"`; elsewhere with its defaults.

mod acks;
mod connect;
mod destinations;
mod durable;
mod errors;
mod frames;
mod queue_types;
mod queues;
mod receipts;
mod streams;
mod subscriptions;
mod transactions;
mod virtual_hosts;
mod web;
