//! A STOMP server in memory that makes one mistake, at the message that it is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use stomp_relay::stomp::{Command, Decoder, Escapes, Frame, Item, Limits, encode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// What goes wrong, at which message of its destination, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The publisher is cut off.
    Close(usize),
    Drop(usize),
    /// The publisher is not read for 300 ms.
    Pause(usize),
    Repeat(usize),
    /// Another body in its place.
    Spoil(usize),
    /// It comes behind the next one.
    Swap(usize),
}

pub struct Peer {
    port: u16,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Whether the fault is still to come: it comes once, whatever destination is first.
    fault: Option<Fault>,
    seen: HashMap<String, usize>,
    subscribers: HashMap<String, UnboundedSender<Bytes>>,
    held: HashMap<String, Bytes>,
}

type Shared = Arc<Mutex<State>>;

/// What the publisher has to feel.
enum Consequence {
    None,
    Close,
    Pause,
}

impl Peer {
    pub async fn start(fault: Fault) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port can be bound");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Shared::new(Mutex::new(State { fault: Some(fault), ..State::default() }));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, state.clone()));
            }
        });
        Peer { port, task }
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/ws", self.port)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// The type is the library's.
#[allow(clippy::result_large_err)]
fn answer(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("v12.stomp"));
    Ok(response)
}

async fn serve(stream: TcpStream, state: Shared) {
    let Ok(mut socket) = accept_hdr_async(stream, answer).await else { return };
    let (sender, mut messages) = unbounded_channel::<Bytes>();
    let mut decoder = Decoder::new(Limits::default(), Escapes::All);
    let mut input = BytesMut::new();
    loop {
        tokio::select! {
            Some(body) = messages.recv() => {
                let mut frame = Frame::new(Command::Message).with_header("subscription", "0").with_header("ack", "1");
                frame.body = body;
                if socket.send(text(&frame)).await.is_err() { return }
            }
            read = socket.next() => match read {
                Some(Ok(Message::Text(text))) => input.extend_from_slice(text.as_bytes()),
                Some(Ok(_)) => {}
                _ => return,
            },
        }
        while let Ok(Some(item)) = decoder.decode(&mut input) {
            let Item::Frame(frame) = item else { continue };
            let destination = frame.header("destination").unwrap_or_default().to_owned();
            match frame.command {
                Command::Connect => {
                    let connected = Frame::new(Command::Connected).with_header("version", "1.2");
                    if socket.send(text(&connected)).await.is_err() {
                        return;
                    }
                }
                Command::Subscribe => {
                    lock(&state).subscribers.insert(destination, sender.clone());
                }
                Command::Send => {
                    let consequence = lock(&state).pass_on(&destination, frame.body.clone());
                    match consequence {
                        Consequence::Close => return,
                        Consequence::Pause => tokio::time::sleep(Duration::from_millis(300)).await,
                        Consequence::None => {}
                    }
                }
                _ => {}
            }
            if let Some(id) = frame.header("receipt") {
                let receipt = Frame::new(Command::Receipt).with_header("receipt-id", id);
                if socket.send(text(&receipt)).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl State {
    fn pass_on(&mut self, destination: &str, body: Bytes) -> Consequence {
        let number = self.seen.entry(destination.to_owned()).or_default();
        let at = std::mem::replace(number, *number + 1);
        let subscriber = &self.subscribers[destination];
        let send = |body: Bytes| {
            // A subscriber that has left needs nothing.
            let _ = subscriber.send(body);
        };
        let fault = self.fault.filter(|fault| fault.at() == Some(at)).inspect(|_| self.fault = None);
        match fault {
            Some(Fault::Drop(_)) => {}
            Some(Fault::Repeat(_)) => {
                send(body.clone());
                send(body);
            }
            Some(Fault::Spoil(_)) => send(Bytes::from_static(b"another body")),
            Some(Fault::Swap(_)) => {
                self.held.insert(destination.to_owned(), body);
            }
            _ => {
                send(body);
                self.held.remove(destination).into_iter().for_each(send);
            }
        }
        match fault {
            Some(Fault::Close(_)) => Consequence::Close,
            Some(Fault::Pause(_)) => Consequence::Pause,
            _ => Consequence::None,
        }
    }
}

impl Fault {
    fn at(self) -> Option<usize> {
        match self {
            Fault::None => None,
            Fault::Close(at) | Fault::Drop(at) | Fault::Pause(at) => Some(at),
            Fault::Repeat(at) | Fault::Spoil(at) | Fault::Swap(at) => Some(at),
        }
    }
}

fn lock(state: &Shared) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(frame: &Frame) -> Message {
    let mut output = BytesMut::new();
    encode(frame, &mut output);
    Message::text(String::from_utf8(output.to_vec()).expect("the generator writes text"))
}
