//! A private RabbitMQ for tests.
//!
//! `STOMP_RELAY_TEST_BROKER` names a folder with `amqp_port` and `ctl` (see `tests/support/with-broker`): that broker is
//! used, whatever its version. Without it, the test process starts a node of its own through `tests/support/broker-node`,
//! which lives as long as this process does, however it ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) struct Rabbit {
    folder: PathBuf,
    amqp_port: u16,
    /// Its standard input keeps the node alive.
    node: Option<Child>,
}

impl Rabbit {
    /// The broker that the tests of this process share. Never stopped before the process ends.
    pub(crate) fn shared() -> &'static Rabbit {
        static SHARED: OnceLock<Rabbit> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var_os("STOMP_RELAY_TEST_BROKER") {
            Some(folder) => Rabbit::running(PathBuf::from(folder), None),
            None => Rabbit::start(),
        })
    }

    /// A node of one's own, for tests that disturb it. Stopped when dropped.
    pub(crate) fn start() -> Rabbit {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/broker-node");
        let mut node = Command::new(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/support/broker-node can be run");
        let mut line = String::new();
        BufReader::new(node.stdout.take().expect("piped")).read_line(&mut line).expect("broker-node writes text");
        let folder = line.trim().strip_prefix("ready ").expect("broker-node starts a node; see its messages above");
        Rabbit::running(PathBuf::from(folder), Some(node))
    }

    fn running(folder: PathBuf, node: Option<Child>) -> Rabbit {
        let port = std::fs::read_to_string(folder.join("amqp_port")).expect("the folder of a broker holds amqp_port");
        Rabbit { amqp_port: port.trim().parse().expect("amqp_port holds a number"), folder, node }
    }

    pub(crate) fn amqp_port(&self) -> u16 {
        self.amqp_port
    }

    /// Runs rabbitmqctl and returns what it prints.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(self.folder.join("ctl")).arg("-q").args(arguments).output().expect("ctl can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// A user with the given permissions on one virtual host.
    pub(crate) fn add_user(&self, name: &str, passcode: &str, vhost: &str, [configure, write, read]: [&str; 3]) {
        self.ctl(&["add_user", name, passcode]);
        self.ctl(&["set_permissions", "-p", vhost, name, configure, write, read]);
    }

    /// A plain AMQP connection as guest, to look at things from the other side.
    pub(crate) async fn admin(&self) -> Admin {
        let uri = format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.amqp_port);
        let connection =
            lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.expect("guest may connect");
        let channel = connection.create_channel().await.expect("a channel opens");
        Admin { _connection: connection, channel }
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            drop(node.stdin.take());
            let _ = node.wait();
        }
    }
}

pub(crate) struct Admin {
    _connection: lapin::Connection,
    pub(crate) channel: lapin::Channel,
}

impl Admin {
    /// Messages ready in a queue, `None` if there is no such queue.
    pub(crate) async fn ready(&self, queue: &str) -> Option<u32> {
        let channel = self._connection.create_channel().await.expect("a channel opens");
        let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let found = channel.queue_declare(queue.into(), options, Default::default()).await;
        found.ok().map(|queue| queue.message_count())
    }

    /// A durable queue for one test.
    pub(crate) async fn queue(&self, name: &str) {
        let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(name.into(), options, Default::default()).await.expect("the queue is declared");
    }

    pub(crate) async fn send(&self, queue: &str, body: &[u8]) {
        let publish = self.channel.basic_publish(
            "".into(),
            queue.into(),
            Default::default(),
            body,
            lapin::BasicProperties::default(),
        );
        publish.await.expect("the message is written");
    }
}

/// A name that no other test of any process uses.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").subsec_nanos();
    format!("{prefix}-{}-{}-{nanos}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
