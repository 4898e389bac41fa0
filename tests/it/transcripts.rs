//! Session transcripts: text in, text out, simulated time. Each file in tests/session is a conversation; lines `C>`, `B>`
//! and `T>` go in, lines `C<` and `B<` must come out, and `A<`
//! for the audit log. `BLESS=1` writes what came out; read it before you commit it.
//!
//! ```text
//! set compatibility rabbitmq          before the first line: a setting of the session
//! C> SEND destination:/queue/a | hi   the client's frame; \s is a blank, \n a line feed
//! B> confirmed 0                      an event of the broker
//! L> user                             a limit keeps the client out
//! R> send=/queue/a ; subscribe=**     other rules from now on, as after `set rule`; none without
//! D> 30 5                             the relay is being stopped: seconds to its end, frames that were never looked at
//! V>                                  the client's certificate is withdrawn
//! T> 10s                              time passes; every deadline on the way is met
//! U> SEND\ndestination:/queue         bytes that need not be a whole frame; \n, \r and \0 are line feed, carriage return, NUL
//! W>                                  all that came out has been written to the socket
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use stomp_relay::rate::Rate;
use stomp_relay::session::admission::Limit;
use stomp_relay::session::amqp::{Body, FieldValue, Properties, ShortText};
use stomp_relay::session::command::{
    BrokerCommand, Credentials, DeclareToken, DeliveryTag, Overflow, Publish, PublishToken, Settlement, Sharing, Side,
    SubscribedQueue, SubscriptionKey,
};
use stomp_relay::session::config::{Compatibility, Replay, SessionConfig};
use stomp_relay::session::event::{BrokerEvent, BrokerInfo, Concern, Delivery, Failure, LoginFailure, Message};
use stomp_relay::session::identity::{Account, Identity};
use stomp_relay::session::io::{Denied, Input, LoggedIn, Output};
use stomp_relay::session::proof::{CertificateName, Evidence, Proof, ProofFailure, ProofKind, Source, Token};
use stomp_relay::session::rules::{Audience, Conditions, Effect, Grants, Pattern, Rule, RuleSet, Stance};
use stomp_relay::session::{Locality, Session, SessionSeed};
use stomp_relay::stomp::{Decoder, Escapes, Frame, Item, Limits};

#[test]
fn sessions_answer_as_their_transcripts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/session");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(files.len() >= 10, "transcripts are missing from {}", folder.display());
    let bless = std::env::var_os("BLESS").is_some();
    let mut failures = String::new();
    for path in files {
        let expected = std::fs::read_to_string(&path).unwrap();
        let actual = replay(&expected);
        if bless {
            std::fs::write(&path, actual).unwrap();
        } else if actual != expected {
            let first = expected.lines().zip(actual.lines()).find(|(left, right)| left != right);
            let _ = writeln!(failures, "{}\n  first difference: {first:#?}\n  it was:\n{actual}", path.display());
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

fn replay(transcript: &str) -> String {
    let mut output = String::new();
    let mut config = SessionConfig::default();
    let mut peer: IpAddr = "127.0.0.1".parse().unwrap();
    let mut presented = None;
    let mut player: Option<Player> = None;
    for line in transcript.lines() {
        if ["A<", "B<", "C<"].iter().any(|out| line.starts_with(out)) {
            continue;
        }
        let _ = writeln!(output, "{line}");
        if let Some(shown) = line.strip_prefix("set presented ") {
            presented = Some(evidence(shown));
        } else if let Some(setting) = line.strip_prefix("set ") {
            assert!(player.is_none(), "settings come first: {line}");
            set(&mut config, &mut peer, setting);
        } else if line.get(1..2) == Some(">") {
            let player = player.get_or_insert_with(|| Player::new(config.clone(), peer, presented.take()));
            player.line(line);
            output.push_str(&player.drain());
        }
    }
    output
}

fn set(config: &mut SessionConfig, peer: &mut IpAddr, setting: &str) {
    let (key, value) = setting.split_once(' ').unwrap();
    match key {
        "blocked_timeout" => config.blocked_timeout = Duration::from_secs(value.parse().unwrap()),
        "compatibility" => {
            config.compatibility = if value == "rabbitmq" { Compatibility::Rabbitmq } else { Compatibility::Strict };
        }
        "default_credentials" => {
            let (login, passcode) = value.split_once(' ').unwrap();
            config.default_credentials = Some(Credentials { login: login.into(), passcode: passcode.into() });
        }
        "drop_oldest" => config.drop_oldest = vec![value.to_owned()],
        "peer" => *peer = value.parse().unwrap(),
        "replay" => {
            config.replay = match value {
                "all" => Replay::All,
                "none" => Replay::None,
                _ => Replay::Receipted,
            };
        }
        "rule" => {
            let mut rules = config.rules.rules().to_vec();
            rules.push(rule(value));
            config.rules = Arc::new(RuleSet::new(rules));
        }
        "stance" => config.stance = if value == "closed" { Stance::Closed } else { Stance::Open },
        "send_rate" => {
            let (per_second, burst) = value.split_once(' ').unwrap();
            config.send_rate = Rate { per_second: per_second.parse().unwrap(), burst: burst.parse().unwrap() };
        }
        "survive" => config.survive = Some(Duration::from_secs(value.parse().unwrap())),
        "sources" => {
            let named = |name: &str| Source::NAMES.iter().find(|(known, _)| *known == name).expect("a source").1;
            config.sources = value.split(' ').map(named).collect();
        }
        "subscriptions_max" => config.subscriptions_max = value.parse().unwrap(),
        "transaction_bytes_max" => config.transaction_bytes_max = value.parse().unwrap(),
        "transaction_frames_max" => config.transaction_frames_max = value.parse().unwrap(),
        "transactions_max" => config.transactions_max = value.parse().unwrap(),
        "unconfirmed_bytes_max" => config.unconfirmed_bytes_max = value.parse().unwrap(),
        "unconfirmed_messages_max" => config.unconfirmed_messages_max = value.parse().unwrap(),
        _ => panic!("unknown setting {key}"),
    }
}

/// `rule deny user=bob send=/queue/a,/queue/b headers=durable declare`, in any order.
fn rule(text: &str) -> Rule {
    let (mut users, mut claims, mut proofs) = (Vec::new(), BTreeMap::new(), Vec::new());
    let mut rule = Rule {
        audience: Audience::default(),
        effect: Effect::Allow,
        grants: Grants::default(),
        line: None,
        name: None,
        send: Vec::new(),
        subscribe: Vec::new(),
    };
    for word in text.split(' ') {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let list = || value.split(',').filter(|item| !item.is_empty()).map(str::to_owned);
        let patterns = || list().map(|item| Pattern::parse(&item).unwrap()).collect();
        match key {
            "claim" => drop(
                claims.insert(value.split(':').next().unwrap().to_owned(), value.split(':').nth(1).unwrap().to_owned()),
            ),
            "declare" => rule.grants.declare = Some(true),
            "deny" => rule.effect = Effect::Deny,
            "headers" => rule.grants.headers = Some(list().collect()),
            "name" => rule.name = Some(value.to_owned()),
            "prefetch_max" => rule.grants.prefetch_max = value.parse().ok(),
            "proof" => proofs.extend(ProofKind::NAMES.iter().filter(|(name, _)| *name == value).map(|(_, kind)| *kind)),
            "reply_to" => rule.grants.reply_to = Some(patterns()),
            "send" => rule.send = patterns(),
            "subscribe" => rule.subscribe = patterns(),
            "subscriptions_max" => rule.grants.subscriptions_max = value.parse().ok(),
            "user" => users.push(value.to_owned()),
            _ => panic!("unknown word {word}"),
        }
    }
    rule.audience = Audience::new(&Conditions { claims, proofs: &proofs, users: &users, ..Conditions::default() });
    rule
}

/// `basic LOGIN PASSCODE`, `certificate NAME` or the name of a token's source and the token.
fn evidence(text: &str) -> Evidence {
    let words: Vec<&str> = text.split(' ').collect();
    let source = Source::NAMES.iter().find(|(known, _)| *known == words[0]).expect("a source").1;
    let proof = match source {
        Source::Basic => Proof::Password(Credentials { login: words[1].into(), passcode: words[2].into() }),
        Source::Certificate => Proof::Certificate(CertificateName(words[1].into())),
        _ => Proof::Token(Token::new(words[1])),
    };
    Evidence { proof, source }
}

struct Player {
    now: Instant,
    session: Session,
    /// Of `U>` lines.
    decoder: Decoder,
    bytes: BytesMut,
    /// What the client has sent and the session does not want yet.
    unread: VecDeque<String>,
}

impl Player {
    fn new(config: SessionConfig, peer: IpAddr, presented: Option<Evidence>) -> Player {
        let now = Instant::now();
        let seed = SessionSeed { id: "session-s".to_owned(), queue_names: [7; 16] };
        let locality = if peer.is_loopback() { Locality::Local } else { Locality::Remote };
        let session = Session::new(Arc::new(config), seed, locality, now).with_presented(presented);
        let decoder = Decoder::new(Limits::default(), Escapes::ExceptConnect);
        Player { now, session, decoder, bytes: BytesMut::new(), unread: VecDeque::new() }
    }

    fn line(&mut self, line: &str) {
        let (kind, rest) = line.split_at(2);
        let rest = rest.trim_start();
        match kind {
            "B>" => broker_inputs(rest, self.now).into_iter().for_each(|input| self.input(input)),
            "C>" if rest == "pong" => self.input(Input::Received),
            "C>" => self.unread.push_back(rest.to_owned()),
            "D>" => {
                let words: Vec<u64> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
                let until = self.now + Duration::from_secs(words.first().copied().unwrap_or(30));
                self.input(Input::Drain { until, unread: words.get(1).copied().unwrap_or(0) as usize });
            }
            "L>" => self.input(Input::NotAdmitted(match rest {
                "user" => Limit::ConnectionsOfUser,
                "connections" => Limit::Connections,
                _ => panic!("unknown limit {rest}"),
            })),
            "R>" => {
                let rules = rest.split(" ; ").filter(|text| !text.is_empty()).map(rule).collect();
                self.input(Input::RulesReplaced(Arc::new(RuleSet::new(rules))));
            }
            "T>" => self.pass(rest),
            "V>" => self.input(Input::CertificateWithdrawn),
            "U>" => {
                let text = rest.replace("\\n", "\n").replace("\\r", "\r").replace("\\0", "\0");
                self.bytes.extend_from_slice(text.as_bytes());
                self.input(Input::Received);
            }
            "W>" => self.input(Input::Flushed),
            _ => panic!("unknown line {line}"),
        }
        // As the driver does it: what the session does not want stays unread.
        while self.session.wants_frames()
            && let Some(text) = self.unread.pop_front()
        {
            self.client(&text);
        }
        self.decode();
    }

    /// As the driver does it, which knows of an unfinished frame only while the session wants frames.
    fn decode(&mut self) {
        while self.session.wants_frames() {
            let input = match self.decoder.decode(&mut self.bytes) {
                Ok(Some(Item::Frame(frame))) => Input::Frame(frame),
                Ok(Some(Item::Heartbeat)) => continue,
                Ok(None) => {
                    let frame = self.decoder.unfinished(&self.bytes);
                    if frame.is_some() || self.session.is_in_frame() {
                        self.input(Input::Unfinished(frame));
                    }
                    return;
                }
                Err(error) => return self.input(Input::Malformed(error)),
            };
            self.input(input);
        }
    }

    fn client(&mut self, text: &str) {
        let mut decoder = Decoder::new(Limits::default(), Escapes::ExceptConnect);
        let mut bytes = BytesMut::from(&frame_bytes(text)[..]);
        let input = match decoder.decode(&mut bytes) {
            Ok(Some(Item::Frame(frame))) => Input::Frame(frame),
            Ok(other) => panic!("not a frame: {text}: {other:?}"),
            Err(error) => Input::Malformed(error),
        };
        self.input(input);
    }

    /// Time goes from deadline to deadline, so that nothing is met late.
    fn pass(&mut self, text: &str) {
        let milliseconds: u64 = match text.strip_suffix("ms") {
            Some(number) => number.parse().unwrap(),
            None => text.strip_suffix('s').unwrap().parse::<u64>().unwrap() * 1000,
        };
        let end = self.now + Duration::from_millis(milliseconds);
        while let Some(deadline) = self.session.poll_timeout().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.input(Input::Timeout);
        }
        self.now = end;
    }

    fn input(&mut self, input: Input) {
        self.session.handle_input(self.now, input);
    }

    fn drain(&mut self) -> String {
        let mut text = String::new();
        while let Some(output) = self.session.poll_output() {
            let _ = writeln!(text, "{}", show(output));
        }
        text
    }
}

fn frame_bytes(text: &str) -> Vec<u8> {
    let (head, body) = text.split_once(" | ").unwrap_or((text, ""));
    let mut bytes = Vec::new();
    for word in head.split(' ') {
        bytes.extend(word.replace("\\s", " ").into_bytes());
        bytes.push(b'\n');
    }
    bytes.push(b'\n');
    bytes.extend(body.as_bytes());
    bytes.push(0);
    bytes
}

/// `service USER` works as an account of the relay's. Else of guest: to the end of this many seconds if there are any, then claims as `NAME:VALUE`.
fn identity(words: &[&str], now: Instant) -> Identity {
    if let ["certificate", seconds] = words {
        let end = now + Duration::from_secs(seconds.parse().unwrap());
        return Identity {
            certificate_ends_at: Some(end),
            proof: ProofKind::Certificate,
            ..Identity::of_login("guest")
        };
    }
    if let ["service", user] = words {
        return Identity { account: Account::Service, proof: ProofKind::Token, ..Identity::of_login(user) };
    }
    let expires_at = words.first().map(|seconds| now + Duration::from_secs(seconds.parse().unwrap()));
    let claims = words.iter().filter_map(|word| word.split_once(':'));
    let claims = claims.map(|(name, value)| (name.to_owned(), vec![value.to_owned()])).collect();
    Identity { claims, expires_at, ..Identity::of_login("guest") }
}

/// `lost` and `resumed` are of both sides of the lease, `lost-publish` and the like of one.
fn broker_inputs(text: &str, now: Instant) -> Vec<Input> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (what, sides) = match word.split_once('-') {
        Some((what, "consume")) => (what, vec![Side::Consume]),
        Some((what, "publish")) => (what, vec![Side::Publish]),
        _ => (word, vec![Side::Publish, Side::Consume]),
    };
    let event = |side| match what {
        "lost" => BrokerEvent::Failed {
            failure: Failure::LinkLost { reason: rest.to_owned() },
            concerns: Concern::Session,
            side: Some(side),
        },
        _ => BrokerEvent::Restored {
            side,
            result: match rest.split_once(' ') {
                Some(("ok", version)) => Ok(BrokerInfo { version: version.to_owned() }),
                Some(("refused", _)) => Err(LoginFailure::AccessRefused),
                _ if rest == "refused" => Err(LoginFailure::AccessRefused),
                _ => Err(LoginFailure::Unavailable { reason: rest.to_owned() }),
            },
        },
    };
    match what {
        "lost" | "resumed" => sides.into_iter().map(|side| Input::Broker(event(side))).collect(),
        _ => vec![broker_input(text, now)],
    }
}

fn broker_input(text: &str, now: Instant) -> Input {
    let words: Vec<&str> = text.split(' ').collect();
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    let rest = |index: usize| words[index..].join(" ");
    Input::Broker(match words[0] {
        "login" => {
            return Input::Login(match words[1] {
                "ok" => Ok(LoggedIn {
                    broker: BrokerInfo { version: words[2].to_owned() },
                    identity: identity(&words[3..], now),
                }),
                "expired" => Err(ProofFailure::Expired.into()),
                "keyless" => Err(ProofFailure::Unavailable.into()),
                "refused" => Err(LoginFailure::AccessRefused.into()),
                "limited" => Err(ProofFailure::TooMany.into()),
                "untrusted" => Err(ProofFailure::Refused.into()),
                "vhost" => Err(LoginFailure::VirtualHost { reply_text: rest(2) }.into()),
                _ => Err(LoginFailure::Unavailable { reason: rest(2) }.into()),
            });
        }
        "blocked" => BrokerEvent::Blocked,
        "dismissed" => BrokerEvent::Dismissed { failure: LoginFailure::AccessRefused },
        "interrupted" => BrokerEvent::SubscriptionInterrupted { key: SubscriptionKey(number(1)) },
        "cancelled" => BrokerEvent::SubscriptionCancelled { key: SubscriptionKey(number(1)) },
        "closed" => BrokerEvent::Closed,
        "confirmed" => BrokerEvent::Confirmed { token: PublishToken(number(1)) },
        "declared" => BrokerEvent::Declared { token: DeclareToken(number(1)), queue: short(words[2]) },
        "deliver" => BrokerEvent::Delivery(delivery(&words)),
        "dropped" => BrokerEvent::Dropped { key: SubscriptionKey(number(1)), messages: number(2) },
        "overflowed" => BrokerEvent::Overflowed { key: SubscriptionKey(number(1)) },
        "poisoned" => BrokerEvent::Failed {
            failure: Failure::Poisoned { queues: vec![short(words[1])] },
            concerns: Concern::Session,
            side: Some(Side::Consume),
        },
        "refreshed" => {
            return Input::Refreshed(match words[1] {
                "ok" => Ok(identity(&words[2..], now)),
                "keyless" => Err(ProofFailure::Unavailable),
                "expired" => Err(ProofFailure::Expired),
                _ => Err(ProofFailure::Refused),
            });
        }
        "timedout" => BrokerEvent::Failed {
            failure: Failure::TimedOut { step: "step" },
            concerns: Concern::Session,
            side: Some(Side::Consume),
        },
        "unconfirmed" => BrokerEvent::Failed {
            failure: Failure::Unconfirmed,
            concerns: Concern::Publish(PublishToken(number(1))),
            side: Some(Side::Publish),
        },
        "refused" => BrokerEvent::Failed {
            failure: Failure::Refused { reply_code: number(2) as u16, reply_text: rest(3) },
            concerns: concern(words[1]),
            side: Some(if words[1].starts_with('p') { Side::Publish } else { Side::Consume }),
        },
        "rejected" => BrokerEvent::Rejected { token: PublishToken(number(1)) },
        "returned" => {
            BrokerEvent::Returned { token: PublishToken(number(1)), reply_code: 312, reply_text: "NO_ROUTE".to_owned() }
        }
        "settled" => BrokerEvent::Settled { count: number(1) },
        "subscribed" => BrokerEvent::Subscribed { key: SubscriptionKey(number(1)), queue: short(words[2]) },
        "unblocked" => BrokerEvent::Unblocked,
        "unsubscribed" => BrokerEvent::Unsubscribed { key: SubscriptionKey(number(1)) },
        other => panic!("unknown broker event {other}"),
    })
}

fn concern(text: &str) -> Concern {
    let (kind, number) = text.split_at(1);
    match kind {
        "d" => Concern::Declare(DeclareToken(number.parse().unwrap())),
        "p" => Concern::Publish(PublishToken(number.parse().unwrap())),
        "s" => Concern::Subscription(SubscriptionKey(number.parse().unwrap())),
        _ => Concern::Session,
    }
}

/// `deliver KEY TAG EXCHANGE ROUTING-KEY BODY [header:value…]`; `-` is an empty exchange, `redelivered` a flag.
fn delivery(words: &[&str]) -> Delivery {
    let mut properties = Properties::default();
    for word in &words[6..] {
        let Some((name, value)) = word.split_once(':') else { continue };
        match name {
            "content-type" => properties.content_type = Some(short(value)),
            "message_id" => properties.message_id = Some(short(value)),
            "mode" => properties.delivery_mode = value.parse().ok(),
            "reply_to" => properties.reply_to = Some(short(value)),
            _ => properties.headers.push((
                short(name),
                match value.parse() {
                    Ok(number) => FieldValue::Integer(number),
                    Err(_) => FieldValue::Text(value.to_owned()),
                },
            )),
        }
    }
    Delivery {
        key: SubscriptionKey(words[1].parse().unwrap()),
        message: Arc::new(Message {
            body: Body::copy_from_slice(words[5].as_bytes()),
            exchange: short(words[3].trim_matches('-')),
            properties,
            routing_key: short(words[4]),
        }),
        redelivered: words.contains(&"redelivered"),
        tag: words[2].parse().ok().map(DeliveryTag),
    }
}

fn short(text: &str) -> ShortText {
    ShortText::new(text).unwrap()
}

fn show(output: Output) -> String {
    match output {
        Output::Close(close) => format!("C< close {} {}", close.code as u16, close.reason),
        Output::Command(command) => format!("B< {}", show_command(command)),
        Output::Denied(Denied { command, rule, .. }) => match rule {
            Some((number, Some(name))) => format!("A< {command} denied by rule {number} {name}"),
            Some((number, None)) => format!("A< {command} denied by rule {number}"),
            None => format!("A< {command} denied by no rule"),
        },
        Output::Frame(frame) => format!("C< {}", show_frame(&frame)),
        Output::NotAuthenticated { claimed, source } => {
            format!("A< not authenticated: {claimed:?} by {}", source.name())
        }
        Output::Heartbeat => "C< heart-beat".to_owned(),
        Output::LoggedIn => "C< limits raised".to_owned(),
        Output::Login { evidence, virtual_host } => match (&evidence.proof, evidence.source) {
            (Proof::Password(credentials), Source::Password) => {
                format!("B< login {} {virtual_host}", credentials.login)
            }
            (Proof::Password(credentials), source) => {
                format!("B< login {} by {} {virtual_host}", credentials.login, source.name())
            }
            (Proof::Token(token), source) => {
                format!("B< login token {} by {} {virtual_host}", token.expose(), source.name())
            }
            (Proof::Certificate(name), _) => format!("B< login certificate {} {virtual_host}", name.0),
        },
        Output::Ping => "C< ping".to_owned(),
        Output::Refresh { token, user } => format!("B< refresh {user} {}", token.expose()),
    }
}

fn show_frame(frame: &Frame) -> String {
    let mut text = frame.command.as_str().to_owned();
    for (name, value) in frame.headers.iter() {
        let _ = write!(text, " {name}:{}", value.replace(' ', "\\s"));
    }
    if !frame.body.is_empty() {
        let _ = write!(text, " | {}", String::from_utf8_lossy(&frame.body).replace('\n', "\\n"));
    }
    text
}

fn show_command(command: BrokerCommand) -> String {
    match command {
        BrokerCommand::Close => "close".to_owned(),
        BrokerCommand::Declare { token, queue } => format!("declare #{} {}", token.0, show_queue(&queue)),
        BrokerCommand::Publish(Publish { message, repeatable, token }) => {
            let mut text = format!("publish #{} '{}' '{}'", token.0, message.exchange, message.routing_key);
            if message.mandatory {
                text.push_str(" mandatory");
            }
            if !repeatable {
                text.push_str(" once");
            }
            text.push_str(&show_properties(&message.properties));
            let _ = write!(text, " | {}", String::from_utf8_lossy(&message.body).replace('\n', "\\n"));
            text
        }
        BrokerCommand::Restore { side, attempt } => format!("restore {side:?}, attempt {attempt}"),
        BrokerCommand::Settle { tag, outcome } => match outcome {
            Settlement::Ack => format!("ack {}", tag.0),
            Settlement::Nack { requeue } => format!("nack {} requeue={requeue}", tag.0),
        },
        BrokerCommand::Subscribe(subscribe) => {
            let mut text = format!("subscribe #{} prefetch={}", subscribe.key.0, subscribe.prefetch);
            let _ = match &subscribe.queue {
                SubscribedQueue::Existing(name) => write!(text, " existing '{name}'"),
                SubscribedQueue::Declared(queue) => write!(text, " {}", show_queue(queue)),
            };
            if let Some(binding) = &subscribe.binding {
                let _ = write!(text, " bind '{}' '{}'", binding.exchange, binding.routing_key);
                text.push_str(&show_arguments(&binding.arguments));
            }
            if subscribe.exclusive {
                text.push_str(" only consumer");
            }
            match subscribe.sharing {
                Sharing::Own => {}
                Sharing::Shared(Overflow::Disconnect) => text.push_str(" shared"),
                Sharing::Shared(Overflow::DropOldest) => text.push_str(" shared, drops oldest"),
            }
            if !subscribe.consumer_arguments.is_empty() {
                let _ = write!(text, " consume{}", show_arguments(&subscribe.consumer_arguments));
            }
            text
        }
        BrokerCommand::Delete { queue, only: None } => format!("delete '{queue}'"),
        BrokerCommand::Delete { queue, only: Some(binding) } => {
            format!("unbind '{queue}' from '{}' '{}'", binding.exchange, binding.routing_key)
        }
        BrokerCommand::Unsubscribe { key, queue } => format!("unsubscribe #{} {queue:?}", key.0),
    }
}

fn show_queue(queue: &stomp_relay::session::amqp::QueueDeclaration) -> String {
    let mut text = format!("'{}'", queue.name);
    for (set, name) in [(queue.durable, "durable"), (queue.auto_delete, "auto-delete"), (queue.exclusive, "exclusive")]
    {
        if set {
            let _ = write!(text, " {name}");
        }
    }
    text + &show_arguments(&queue.arguments)
}

fn show_arguments(arguments: &[(ShortText, FieldValue)]) -> String {
    arguments.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = write!(text, " {name}={value:?}");
        text
    })
}

fn show_properties(properties: &Properties) -> String {
    let mut text = String::new();
    let named = [
        ("app_id", &properties.app_id),
        ("content_encoding", &properties.content_encoding),
        ("content_type", &properties.content_type),
        ("correlation_id", &properties.correlation_id),
        ("expiration", &properties.expiration),
        ("message_id", &properties.message_id),
        ("reply_to", &properties.reply_to),
        ("type", &properties.kind),
        ("user_id", &properties.user_id),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            let _ = write!(text, " {name}={value}");
        }
    }
    let numbers = [
        ("delivery_mode", properties.delivery_mode.map(u64::from)),
        ("priority", properties.priority.map(u64::from)),
        ("timestamp", properties.timestamp),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            let _ = write!(text, " {name}={value}");
        }
    }
    text + &show_arguments(&properties.headers)
}
