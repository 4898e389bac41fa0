//! The integration tests, in one binary so that they link once. Each module is one subject.

// Nothing of a test binary is reachable from outside.
#![allow(unreachable_pub)]

mod broker;
mod cli;
mod codec;
mod config;
mod destinations;
mod docs;
mod front;
mod support;
mod transcripts;
