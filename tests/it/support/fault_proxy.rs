//! A TCP proxy that does to the bytes what networks do: forwards, cuts, swallows, delays, garbles. Ends when it is dropped.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// TCP_RTO_MIN of Linux.
const SENT_AGAIN: Duration = Duration::from_millis(200);

/// Of what a connection says when it begins.
const INTRODUCTION_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Every piece comes this much later.
    Delay(Duration),
    /// The same, between half and one and a half of it, and one piece in so many is lost: what is sent again comes as much later
    /// as a kernel waits at least before it does, and with it all that is behind.
    Lossy(Duration, usize),
    /// Connections are accepted and closed at once; those that exist go on.
    Refuse,
    /// Takes everything and passes nothing on, both ways: a peer that is gone without a word.
    Swallow,
    /// The same for what goes this way only.
    SwallowFrom(Direction),
    /// So many bytes a second each way, of each connection.
    Throttle(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    FromServer,
    ToServer,
}

/// Where a connection is cut: once, in the next piece with this pattern, after so many of its bytes.
struct Trap {
    direction: Direction,
    pattern: Vec<u8>,
    bytes: usize,
}

struct State {
    accepted: AtomicUsize,
    /// What connections say when they begin that are cut.
    banned: watch::Sender<Option<Vec<u8>>>,
    cuts: watch::Sender<usize>,
    garble: Mutex<Option<(Direction, Vec<u8>)>>,
    live: AtomicUsize,
    mode: watch::Sender<Mode>,
    trap: Mutex<Option<Trap>>,
}

pub struct FaultProxy {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    /// In front of a port of this machine, on a free port.
    pub async fn start(target: u16) -> FaultProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port can be bound");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            accepted: AtomicUsize::new(0),
            banned: watch::Sender::new(None),
            cuts: watch::Sender::new(0),
            garble: Mutex::new(None),
            live: AtomicUsize::new(0),
            mode: watch::Sender::new(Mode::Forward),
            trap: Mutex::new(None),
        });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                if *shared.mode.borrow() != Mode::Refuse {
                    tokio::spawn(connection(client, target, shared.clone()));
                }
            }
        });
        FaultProxy { port, state, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connections that clients have made so far.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::Relaxed)
    }

    /// Connections that exist.
    pub fn live(&self) -> usize {
        self.state.live.load(Ordering::Relaxed)
    }

    /// From now on, for existing connections too.
    pub fn set(&self, mode: Mode) {
        self.state.mode.send_replace(mode);
    }

    /// From now on, connections that say this when they begin, such as their name, are cut; none: no more.
    pub fn ban(&self, introduction: Option<&str>) {
        self.state.banned.send_replace(introduction.map(|text| text.as_bytes().to_vec()));
    }

    /// Closes all connections that exist.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Cuts the connection whose next piece has `pattern` in it, once, when `bytes` of that piece have been passed on.
    pub fn cut_within(&self, direction: Direction, pattern: &[u8], bytes: usize) {
        *self.state.trap.lock().unwrap() = Some(Trap { direction, pattern: pattern.to_vec(), bytes });
    }

    /// Whether what [`FaultProxy::cut_within`] waits for has come.
    pub fn has_cut(&self) -> bool {
        self.state.trap.lock().unwrap().is_none()
    }

    /// Puts bytes that are no AMQP frame in the place of every piece in which `pattern` passes; none: stops that.
    pub fn garble(&self, pattern: Option<(Direction, &[u8])>) {
        *self.state.garble.lock().unwrap() = pattern.map(|(direction, pattern)| (direction, pattern.to_vec()));
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn connection(client: TcpStream, target: u16, state: Arc<State>) {
    let mut cuts = state.cuts.subscribe();
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    state.live.fetch_add(1, Ordering::Relaxed);
    let (client, server) = (client.into_split(), server.into_split());
    let introduction = watch::Sender::new(Vec::new());
    tokio::select! {
        () = pass(client.0, server.1, Direction::ToServer, &state, &introduction) => {}
        () = pass(server.0, client.1, Direction::FromServer, &state, &introduction) => {}
        _ = cuts.changed() => {}
        () = banned(&state, &introduction) => {}
    }
    state.live.fetch_sub(1, Ordering::Relaxed);
}

/// When the connection is one of those that are banned.
async fn banned(state: &State, introduction: &watch::Sender<Vec<u8>>) {
    let mut banned = state.banned.subscribe();
    while !state.bans(&introduction.borrow()) {
        if banned.changed().await.is_err() {
            return;
        }
    }
}

/// Until one side closes, which closes the other: half-closed connections are no part of AMQP.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    state: &State,
    introduction: &watch::Sender<Vec<u8>>,
) {
    let mut buffer = vec![0; 64 * 1024];
    for piece in 1_usize.. {
        let bytes = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                // The end is swallowed too.
                let _ = state.mode.subscribe().wait_for(|mode| !mode.swallows(direction)).await;
                return;
            }
            Ok(bytes) => &buffer[..bytes],
        };
        if direction == Direction::ToServer && introduction.borrow().len() < INTRODUCTION_BYTES {
            introduction.send_modify(|said| said.extend_from_slice(bytes));
            if state.bans(&introduction.borrow()) {
                return;
            }
        }
        let mode = *state.mode.borrow();
        match mode {
            mode if mode.swallows(direction) => continue,
            Mode::Delay(time) => tokio::time::sleep(time).await,
            Mode::Lossy(time, one_in) => {
                // Uneven, and the same in every run.
                let jitter = time / 2 + time * (piece * 37 % 100) as u32 / 100;
                let lost = if piece.is_multiple_of(one_in) { SENT_AGAIN } else { Duration::ZERO };
                tokio::time::sleep(jitter + lost).await;
            }
            Mode::Throttle(rate) => {
                tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / f64::from(rate))).await;
            }
            Mode::Forward | Mode::Refuse | Mode::Swallow | Mode::SwallowFrom(_) => {}
        }
        if let Some(part) = state.cuts_within(direction, bytes) {
            // The other side may be gone already, which is what is wanted.
            let _ = to.write_all(&bytes[..part]).await;
            return;
        }
        let written =
            if state.garbles(direction, bytes) { to.write_all(&[9; 64]).await } else { to.write_all(bytes).await };
        if written.is_err() {
            return;
        }
    }
}

impl Mode {
    fn swallows(self, direction: Direction) -> bool {
        self == Mode::Swallow || self == Mode::SwallowFrom(direction)
    }
}

impl State {
    fn bans(&self, introduction: &[u8]) -> bool {
        let banned = self.banned.borrow();
        banned.as_ref().is_some_and(|banned| introduction.windows(banned.len()).any(|window| window == banned))
    }

    /// After how many of these bytes their connection is to be cut; then never again.
    fn cuts_within(&self, direction: Direction, bytes: &[u8]) -> Option<usize> {
        let mut trap = self.trap.lock().unwrap();
        let found = trap.as_ref().is_some_and(|trap| {
            trap.direction == direction && bytes.windows(trap.pattern.len()).any(|window| window == trap.pattern)
        });
        trap.take_if(|_| found).map(|trap| trap.bytes.min(bytes.len()))
    }

    fn garbles(&self, direction: Direction, bytes: &[u8]) -> bool {
        let garble = self.garble.lock().unwrap();
        garble.as_ref().is_some_and(|(wanted, pattern)| {
            *wanted == direction && bytes.windows(pattern.len()).any(|window| window == pattern)
        })
    }
}
