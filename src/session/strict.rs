//! What strict mode asks of a frame and RabbitMQ's plugin does not. docs/mapping.md lists it, and what strict mode forgives.

use super::refusal::Refusal;
use crate::stomp::{Command, Frame, Version};

/// Headers by which other servers choose or change what a subscription gets. RabbitMQ knows none of them: a client that relies
/// on one would get other messages than it asked for, or consume what it meant to look at.
const OF_OTHER_SERVERS: [&str; 3] = ["browser", "no-local", "selector"];

/// # Errors
/// What STOMP demands of a frame of this version and is not there, or what can't be done and must not be passed over.
pub(super) fn check(frame: &Frame, version: Version) -> Result<(), Refusal> {
    check_length(frame)?;
    match frame.command {
        Command::Send => return Ok(()),
        Command::Subscribe => refuse_what_is_not_done(frame)?,
        Command::Ack | Command::Nack if version == Version::V1_1 => require(frame, "subscription", version)?,
        _ => {}
    }
    refuse_body(frame)
}

/// STOMP 1.0 has no header of this kind that must be there.
pub(super) fn require(frame: &Frame, header: &'static str, version: Version) -> Result<(), Refusal> {
    if version == Version::V1_0 || frame.headers.contains(header) {
        return Ok(());
    }
    let hint = "STOMP requires it; CONNECT with accept-version:1.0 to do without.";
    Err(Refusal::missing_header(frame.command.as_str(), header, hint))
}

fn refuse_what_is_not_done(frame: &Frame) -> Result<(), Refusal> {
    // Libraries write the header without a value, or `false`, where the application asked for nothing.
    let asks = |name: &&&str| frame.header(name).is_some_and(|value| !matches!(value, "" | "false" | "False"));
    match OF_OTHER_SERVERS.iter().find(asks) {
        None => Ok(()),
        Some(name) => Err(Refusal::soft(
            "subscription.unsupported",
            "Unsupported header",
            format!("\"{name}\" is not supported: RabbitMQ would deliver as if it were not there\n"),
            "Use a topic pattern, bindings (x-bind-NAME) or a stream's filter.",
        )),
    }
}

/// The decoder takes a SEND's length that it can't read for none, and does not read that of other frames, as the plugin does.
fn check_length(frame: &Frame) -> Result<(), Refusal> {
    let Some(value) = frame.header("content-length") else { return Ok(()) };
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse::<usize>() {
        Ok(bytes) if digits && bytes == frame.body.len() => Ok(()),
        _ => Err(Refusal::bad_header("content-length", "expected the body's length in bytes, in decimal digits")),
    }
}

/// STOMP 1.2, "Body": only SEND, MESSAGE and ERROR may have one. Line ends are let pass, which some clients write before the NUL.
fn refuse_body(frame: &Frame) -> Result<(), Refusal> {
    if frame.body.iter().all(|byte| matches!(byte, b'\n' | b'\r')) {
        return Ok(());
    }
    let command = frame.command.as_str();
    Err(Refusal::soft(
        "frame.body",
        "Unexpected body",
        format!("\"{command}\" has a body of {} bytes; only SEND may have one\n", frame.body.len()),
        "Is the NUL missing that ends a frame?",
    ))
}
