//! `stomp-relay explain`: which rule decides about one frame, and what the frame becomes in AMQP.
//!
//! Runs the session itself, with a broker that says yes to everything, and shows what it asks for. Asks no network. Knows
//! nothing about rules that the session does not know.

mod amqp;
mod token;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Instant;

use crate::config::Config;
use crate::session::command::BrokerCommand;
use crate::session::config::SessionConfig;
use crate::session::destination::Destination;
use crate::session::event::{BrokerEvent, BrokerInfo};
use crate::session::identity::Identity;
use crate::session::io::{Input, LoggedIn, Output};
use crate::session::rules::{Client, Demand, Effect, NotFor, Operation, Purpose, Rule, Stance, Verdict};
use crate::session::{Locality, Session, SessionSeed};
use crate::stomp::{Command, Frame};

pub use token::{TokenError, identity_of_token};

/// Renews the client's token; judged by nobody but the authenticator.
const TOKENS: &str = "/auth/tokens";

/// One frame and who sends it.
#[derive(Clone, Debug)]
pub struct Question {
    /// As RabbitMQ announces it; decides about flags of queues. Empty: the newest.
    pub broker_version: String,
    pub destination: String,
    pub headers: Vec<(String, String)>,
    pub identity: Identity,
    pub operation: Operation,
    /// None: the configured default.
    pub virtual_host: Option<String>,
}

/// The answer, as lines for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub accepted: bool,
    text: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.trim_end())
    }
}

/// The claims of `NAME=VALUE` texts; the same name may come again with another value.
///
/// # Errors
/// The text that is no such pair.
pub fn claims(texts: &[String]) -> Result<BTreeMap<String, Vec<String>>, &str> {
    let mut claims = BTreeMap::<String, Vec<String>>::new();
    for text in texts {
        let (name, value) = text.split_once('=').ok_or(text.as_str())?;
        claims.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    Ok(claims)
}

pub fn explain(config: &Config, question: &Question) -> Explanation {
    if question.destination == TOKENS && question.operation == Operation::Send {
        let text = format!("{TOKENS} renews the client's token; no rule has a say, and nothing goes to RabbitMQ");
        return Explanation { accepted: true, text };
    }
    let config = config.session_config();
    let virtual_host = question.virtual_host.clone().unwrap_or_else(|| config.virtual_hosts.default.clone());
    let mut text = String::new();
    let frame = frame(question);
    if let Ok(destination) = Destination::parse(&question.destination, config.destination_decoding) {
        let (exchange, decoding) = (&config.default_topic_exchange, config.destination_decoding);
        let demand = Demand::of(question.operation, &frame.headers, &destination, exchange, decoding);
        let client =
            Client { identity: &question.identity, topic_exchange: exchange.as_str(), virtual_host: &virtual_host };
        decisions(&mut text, &config, &demand, &client);
    }
    let accepted = play(&mut text, config, question, virtual_host, frame);
    Explanation { accepted, text }
}

fn frame(question: &Question) -> Frame {
    let mut frame = Frame::new(match question.operation {
        Operation::Send => Command::Send,
        Operation::Subscribe => Command::Subscribe,
    });
    frame.headers.push("destination", &question.destination);
    for (name, value) in &question.headers {
        frame.headers.push(name, value);
    }
    if question.operation == Operation::Subscribe && frame.header("id").is_none() {
        frame.headers.push("id", "0");
    }
    frame
}

/// What the rules say, up to the one that decides, about each thing that the frame asks for.
fn decisions(text: &mut String, config: &SessionConfig, demand: &Demand, client: &Client<'_>) {
    let rules = config.rules.rules();
    if rules.is_empty() && config.stance == Stance::Open {
        text.push_str("no rules: the RabbitMQ user's permissions alone decide\n");
        return;
    }
    for (purpose, operation, target) in demand.targets() {
        let indent = match purpose {
            Purpose::Itself => "",
            _ => "  ",
        };
        // Writing to a String does not fail.
        let _ = match purpose {
            Purpose::Bound(name) => writeln!(text, "SEND to queue '{name}' too, which is bound:"),
            Purpose::Copy(key) => writeln!(text, "SEND with the routing key '{key}' too:"),
            Purpose::DeadLetters(exchange) => writeln!(text, "SEND of dead letters to exchange '{exchange}' too:"),
            Purpose::Drained(name) => {
                writeln!(text, "SUBSCRIBE to queue '{name}' too, whose dead letters would go elsewhere:")
            }
            Purpose::Itself => Ok(()),
            Purpose::QueueName(name) => writeln!(text, "SUBSCRIBE to queue '{name}' too:"),
        };
        let mut decided = false;
        for (index, rule) in rules.iter().enumerate() {
            let verdict = rule.verdict(client, operation, target);
            let _ = writeln!(text, "{indent}{}: {}", name(index, rule), say(&verdict));
            decided = matches!(verdict, Verdict::Decides(_));
            if decided {
                break;
            }
        }
        if !decided {
            let _ = writeln!(text, "{indent}no rule decides: denied");
        }
    }
}

fn name(index: usize, rule: &Rule) -> String {
    let mut text = format!("rule {}", index + 1);
    if let Some(name) = &rule.name {
        let _ = write!(text, " {name:?}");
    }
    if let Some(line) = rule.line {
        let _ = write!(text, " (line {line})");
    }
    text
}

fn say(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Decides(Effect::Allow) => "allows".to_owned(),
        Verdict::Decides(Effect::Deny) => "denies".to_owned(),
        Verdict::Elsewhere => "does not reach it".to_owned(),
        Verdict::NotFor(NotFor::Certificate) => "not for this certificate".to_owned(),
        Verdict::NotFor(NotFor::Claim(name)) => format!("not for this value of claim {name:?}, or it is missing"),
        Verdict::NotFor(NotFor::Proof) => "not for this proof of identity".to_owned(),
        Verdict::NotFor(NotFor::User) => "not for this user".to_owned(),
        Verdict::NotFor(NotFor::VirtualHost) => "not for this virtual host".to_owned(),
        Verdict::Unfilled(placeholder) => {
            format!("does not reach it; {placeholder} has no value here that may stand in a pattern")
        }
    }
}

/// Plays the frame to a session and shows what comes of it; whether it was accepted.
fn play(text: &mut String, config: SessionConfig, question: &Question, virtual_host: String, frame: Frame) -> bool {
    let now = Instant::now();
    let seed = SessionSeed { id: "explained".to_owned(), queue_names: [0; 16] };
    let mut session = Session::new(Arc::new(config), seed, Locality::Local, now);
    let broker = BrokerInfo { version: question.broker_version.clone() };
    session.assume_login(LoggedIn { broker, identity: question.identity.clone() }, virtual_host);
    let named = ["durable", "persistent", "x-queue-name"].iter().any(|name| frame.headers.contains(name));
    session.handle_input(now, Input::Frame(frame));
    let (mut operations, mut refusal) = (String::new(), None);
    while let Some(output) = session.poll_output() {
        match output {
            Output::Command(command) => {
                amqp::show(&mut operations, &command, named);
                if let Some(event) = answer(&command) {
                    session.handle_input(now, Input::Broker(event));
                }
            }
            Output::Frame(frame) if frame.command == Command::Error => refusal = refusal.or(Some(frame)),
            _ => {}
        }
    }
    if !operations.is_empty() {
        let _ = write!(text, "AMQP:\n{operations}");
    }
    if let Some(error) = &refusal {
        let code = error.header("error-code").unwrap_or_default();
        let body = String::from_utf8_lossy(&error.body);
        let _ = writeln!(text, "ERROR {code}: {}", body.lines().next().unwrap_or_default());
    }
    refusal.is_none()
}

/// A broker that is content with everything.
fn answer(command: &BrokerCommand) -> Option<BrokerEvent> {
    match command {
        BrokerCommand::Close => Some(BrokerEvent::Closed),
        BrokerCommand::Declare { token, queue } => {
            Some(BrokerEvent::Declared { token: *token, queue: queue.name.clone() })
        }
        BrokerCommand::Publish(publish) => Some(BrokerEvent::Confirmed { token: publish.token }),
        BrokerCommand::Restore { .. } | BrokerCommand::Settle { .. } => None,
        BrokerCommand::Subscribe(subscribe) => {
            Some(BrokerEvent::Subscribed { key: subscribe.key, queue: subscribe.queue.name().clone() })
        }
        BrokerCommand::Delete { .. } => None,
        BrokerCommand::Unsubscribe { key, .. } => Some(BrokerEvent::Unsubscribed { key: *key }),
    }
}
