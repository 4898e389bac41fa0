//! A TCP proxy in front of a broker that cuts connections, or leaves them open and passes nothing on.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    Open,
    /// Bytes of both sides are swallowed: a peer that is gone without a word.
    Silent,
}

pub struct CutProxy {
    pub port: u16,
    cuts: watch::Sender<u64>,
    passage: watch::Sender<Passage>,
    task: JoinHandle<()>,
}

impl CutProxy {
    pub async fn start(target: u16) -> CutProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port can be bound");
        let port = listener.local_addr().expect("it is bound").port();
        let (cuts, passage) = (watch::Sender::new(0), watch::Sender::new(Passage::Open));
        let (cut, passages) = (cuts.subscribe(), passage.subscribe());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, target, cut.clone(), passages.clone()));
            }
        });
        CutProxy { port, cuts, passage, task }
    }

    pub fn uri(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.port)
    }

    /// Closes all connections that exist.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// For existing and new connections.
    pub fn set(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }
}

impl Drop for CutProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(client: TcpStream, target: u16, mut cut: watch::Receiver<u64>, passage: watch::Receiver<Passage>) {
    cut.mark_unchanged();
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let (client, server) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pass(client.0, server.1, &passage) => {}
        () = pass(server.0, client.1, &passage) => {}
        _ = cut.changed() => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, passage: &watch::Receiver<Passage>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        let open = *passage.borrow() == Passage::Open;
        if open && to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
