//! `session.send_rate_max`: a client that is too fast is read more slowly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stomp_relay::rate::Rate;
use stomp_relay::session::config::SessionConfig;
use stomp_relay::session::event::BrokerInfo;
use stomp_relay::session::identity::Identity;
use stomp_relay::session::io::{Input, LoggedIn};
use stomp_relay::session::{Locality, Session, SessionSeed};
use stomp_relay::stomp::{Command, Frame};

fn frame(command: Command, headers: &[(&str, &str)]) -> Input {
    let mut frame = Frame::new(command);
    for (name, value) in headers {
        frame.headers.push(name, value);
    }
    Input::Frame(frame)
}

#[test]
fn a_client_beyond_its_rate_is_not_read_until_the_next_token() {
    let mut now = Instant::now();
    let config = SessionConfig { send_rate: Rate { per_second: 2, burst: 3 }, ..SessionConfig::default() };
    let seed = SessionSeed { id: "session-s".to_owned(), queue_names: [7; 16] };
    let mut session = Session::new(Arc::new(config), seed, Locality::Remote, now);
    let connect = [("accept-version", "1.2"), ("host", "/"), ("login", "a"), ("passcode", "b")];
    session.handle_input(now, frame(Command::Connect, &connect));
    let broker = BrokerInfo { version: "4.0.0".to_owned() };
    session.handle_input(now, Input::Login(Ok(LoggedIn { broker, identity: Identity::of_login("a") })));
    let send = |session: &mut Session, now| {
        session.handle_input(now, frame(Command::Send, &[("destination", "/topic/a")]));
    };
    for _ in 0..2 {
        send(&mut session, now);
        assert!(session.wants_frames());
    }
    send(&mut session, now);
    assert!(!session.wants_frames(), "the burst is used up");
    assert_eq!(session.poll_timeout(), Some(now + Duration::from_millis(500)));
    // What happens meanwhile does not open the gate; a client that waits is not taken for dead.
    now += Duration::from_millis(499);
    session.handle_input(now, Input::Flushed);
    assert!(!session.wants_frames());
    now += Duration::from_millis(1);
    session.handle_input(now, Input::Timeout);
    assert!(session.wants_frames() && !session.has_ended());
    send(&mut session, now);
    assert!(!session.wants_frames());
    assert_eq!(session.stats().throttles, 2);
}
