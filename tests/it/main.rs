//! The integration tests, in one binary so that they link once. Each module is one subject.

// Nothing of a test binary is reachable from outside.
#![allow(unreachable_pub)]

mod audit;
mod auth;
mod bad_input;
mod broker;
mod cli;
mod codec;
mod config;
mod destinations;
mod docs;
mod door;
mod drain;
mod failover_links;
mod faults;
mod front;
mod instructions;
mod isolation;
mod layers;
mod leaks;
mod liveness;
mod load;
mod log_lines;
mod memory;
mod order;
mod packaging;
mod plugin;
mod plugin_acks;
mod plugin_consumers;
mod plugin_limits;
mod plugin_permissions;
mod plugin_properties;
mod plugin_system;
mod plugin_users;
mod poison;
mod process;
mod rules;
mod session_order;
mod session_properties;
mod shared;
mod support;
mod tls_front;
mod transcripts;
