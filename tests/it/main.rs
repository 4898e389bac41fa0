//! The integration tests, in one binary so that they link once. Each module is one subject.

mod cli;
mod codec;
mod config;
mod front;
mod transcripts;
