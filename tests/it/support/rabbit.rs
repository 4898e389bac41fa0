//! A private RabbitMQ for tests, run by scripts/rabbitmq.
//!
//! Under `scripts/rabbitmq with` (scripts/test does that) one node serves all test processes. Without it, each test process
//! starts a node of its own, which lives as long as the process does, however it ends. Any other broker can be used by setting
//! the two variables by hand.
//!
//! A node of one's own can be made to fail: killed, restarted on the same ports with the same data, paused. These calls block
//! until they are done; async tests make them on a multi-threaded runtime within `block_in_place`.

use super::scratch::Scratch;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const PORT: &str = "RELAY_TEST_BROKER_PORT";
const CTL: &str = "RELAY_TEST_BROKER_CTL";

/// Within which RabbitMQ has to answer rabbitmqctl.
const CTL_SECONDS: &str = "300";
/// How often rabbitmqctl tries again to reach its node.
const CTL_ATTEMPTS: usize = 4;

pub struct Rabbit {
    amqp_port: u16,
    /// Runs rabbitmqctl for the node.
    ctl: String,
    /// Its standard input keeps the node alive.
    node: Option<Child>,
}

impl Rabbit {
    /// The broker that the tests of this process share.
    pub fn shared() -> &'static Rabbit {
        static SHARED: OnceLock<Rabbit> = OnceLock::new();
        SHARED.get_or_init(|| match (std::env::var(PORT), std::env::var(CTL)) {
            (Ok(port), Ok(ctl)) => Rabbit { amqp_port: port.parse().expect("a port"), ctl, node: None },
            _ => Rabbit::start(),
        })
    }

    /// A node of one's own, for tests that disturb it. Stopped when dropped.
    pub fn start() -> Rabbit {
        Rabbit::start_with("")
    }

    /// The same with further lines for its `rabbitmq.conf`.
    pub fn start_with(configuration: &str) -> Rabbit {
        Rabbit::make(configuration, "", None)
    }

    /// The same with further plugins of RabbitMQ, with commas between.
    pub fn start_with_plugins(configuration: &str, plugins: &str) -> Rabbit {
        Rabbit::make(configuration, plugins, None)
    }

    /// `peer` is a node whose cluster the new one joins.
    fn make(configuration: &str, plugins: &str, peer: Option<&Rabbit>) -> Rabbit {
        let scratch = Scratch::new();
        let configuration = scratch.write("rabbitmq.conf", configuration);
        let script = script();
        // The inner command lives until the pipe from this process ends, and the node as long as the inner command.
        let wait = format!("echo \"ready ${PORT} ${CTL}\"; exec cat <&3 >/dev/null");
        let mut command = Command::new("sh");
        if let Some(peer) = peer {
            command.env("RELAY_TEST_BROKER_PEER", peer.folder());
        }
        let mut node = command
            .args(["-c", "exec 3<&0; exec \"$0\" with sh -c \"$1\""])
            .arg(script)
            .arg(wait)
            .env("RELAY_TEST_BROKER_CONF", configuration)
            .env("RELAY_TEST_BROKER_PLUGINS", plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/rabbitmq can be run");
        let mut lines = BufReader::new(node.stdout.take().expect("piped")).lines();
        let ready = loop {
            let line = lines.next().expect("scripts/rabbitmq starts a node; see its messages above").expect("text");
            if let Some(ready) = line.strip_prefix("ready ") {
                break ready.to_owned();
            }
        };
        let (port, ctl) = ready.split_once(' ').expect("a port and a command");
        Rabbit { amqp_port: port.parse().expect("a port"), ctl: ctl.to_owned(), node: Some(node) }
    }

    pub fn amqp_port(&self) -> u16 {
        self.amqp_port
    }

    pub fn uri(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.amqp_port)
    }

    /// The folder of the node; `ctl` stands in it.
    fn folder(&self) -> &Path {
        Path::new(&self.ctl).parent().expect("scripts/rabbitmq gives a whole path")
    }

    /// SIGKILL of the node's process: no goodbye, no flush.
    pub fn kill(&self) {
        self.script("down", &["KILL"]);
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self) {
        self.script("down", &["TERM"]);
    }

    /// Starts the node again, on the same ports with the same data, and waits until it serves.
    pub fn restart(&self) {
        self.script("boot", &[]);
    }

    /// SIGSTOP: connections stay open, and nothing answers.
    pub fn pause(&self) {
        self.script("pause", &[]);
    }

    pub fn resume(&self) {
        self.script("resume", &[]);
    }

    fn script(&self, verb: &str, arguments: &[&str]) {
        assert!(self.node.is_some(), "the node is shared with other tests");
        let status = Command::new(script()).arg(verb).arg(self.folder()).args(arguments).status();
        assert!(status.expect("scripts/rabbitmq can be run").success(), "scripts/rabbitmq {verb} {arguments:?}");
    }

    /// Runs rabbitmqctl and returns what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        // It comes from an Erlang node of its own, which on a busy machine may not reach the other one in time. Then nothing was
        // done. What RabbitMQ has been asked takes its time.
        let run = || {
            let mut command = Command::new(&self.ctl);
            command.args(["-q", "--timeout", CTL_SECONDS]).args(arguments).output().expect("ctl can be run")
        };
        let unreached = |output: &Output| {
            let text = String::from_utf8_lossy(&output.stderr);
            !output.status.success() && text.contains("unable to perform an operation on node")
        };
        let mut output = run();
        for _ in 0..CTL_ATTEMPTS {
            if !unreached(&output) {
                break;
            }
            output = run();
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// A user with the given permissions on one virtual host.
    pub fn add_user(&self, name: &str, passcode: &str, vhost: &str, [configure, write, read]: [&str; 3]) {
        self.ctl(&["add_user", name, passcode]);
        self.set_permissions(name, vhost, [configure, write, read]);
    }

    pub fn set_permissions(&self, name: &str, vhost: &str, [configure, write, read]: [&str; 3]) {
        self.ctl(&["set_permissions", "-p", vhost, name, configure, write, read]);
    }

    /// The AMQP connections of a user, as the broker numbers them, without those that only check a passcode or try declarations.
    pub fn links_of(&self, user: &str) -> Vec<String> {
        let all = self.ctl(&["list_connections", "pid", "user", "client_properties"]);
        let depended = |line: &&str| !line.contains("stomp-relay check") && !line.contains("stomp-relay declare");
        let own = all.lines().filter(|line| line.split('\t').nth(1) == Some(user)).filter(depended);
        let mut own = own.filter_map(|line| line.split('\t').next().map(str::to_owned)).collect::<Vec<_>>();
        own.sort();
        own
    }

    /// A plain AMQP connection as guest, to look at things from the other side.
    pub async fn admin(&self) -> Admin {
        self.admin_of("%2f", "guest", "guest").await
    }

    /// The same on another virtual host, as another user; none of them with characters that a URI would have encoded.
    pub async fn admin_of(&self, vhost: &str, login: &str, passcode: &str) -> Admin {
        let uri = format!("amqp://{login}:{passcode}@127.0.0.1:{}/{vhost}", self.amqp_port);
        let connection =
            lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.expect("it may connect");
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

/// Nodes of one cluster, on loopback. Stopped when dropped.
pub struct Cluster {
    pub nodes: Vec<Rabbit>,
}

impl Cluster {
    pub fn start(size: usize) -> Cluster {
        let mut nodes = vec![Rabbit::start()];
        while nodes.len() < size {
            nodes.push(Rabbit::make("", "", nodes.first()));
        }
        Cluster { nodes }
    }

    pub fn uris(&self) -> Vec<String> {
        self.nodes.iter().map(Rabbit::uri).collect()
    }
}

impl Drop for Cluster {
    /// All at once: one after the other would take as often as long.
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().filter_map(|node| node.node.as_mut()) {
            drop(node.stdin.take());
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/rabbitmq")
}

pub struct Admin {
    _connection: lapin::Connection,
    pub channel: lapin::Channel,
}

impl Admin {
    /// Messages ready in a queue, `None` if there is no such queue.
    pub async fn ready(&self, queue: &str) -> Option<u32> {
        let channel = self._connection.create_channel().await.expect("a channel opens");
        let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let found = channel.queue_declare(queue.into(), options, Default::default()).await;
        found.ok().map(|queue| queue.message_count())
    }

    /// A durable queue for one test.
    pub async fn queue(&self, name: &str) {
        let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(name.into(), options, Default::default()).await.expect("the queue is declared");
    }

    /// A durable queue of a type, such as `quorum`, for one test.
    pub async fn typed_queue(&self, name: &str, kind: &str) {
        let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
        let mut arguments = lapin::types::FieldTable::default();
        arguments.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString(kind.into()));
        self.channel.queue_declare(name.into(), options, arguments).await.expect("the queue is declared");
    }

    /// What was made for one test goes with it.
    pub async fn delete(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), Default::default()).await.expect("the queue is deleted");
    }

    /// A durable exchange for one test.
    pub async fn exchange(&self, name: &str, kind: lapin::ExchangeKind) {
        let options = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
        let declared = self.channel.exchange_declare(name.into(), kind, options, Default::default());
        declared.await.expect("the exchange is declared");
    }

    pub async fn send(&self, queue: &str, body: &[u8]) {
        self.publish("", queue, lapin::BasicProperties::default(), body).await;
    }

    pub async fn publish(&self, exchange: &str, key: &str, properties: lapin::BasicProperties, body: &[u8]) {
        let written = self.channel.basic_publish(exchange.into(), key.into(), Default::default(), body, properties);
        written.await.expect("the message is written");
    }

    /// The next message of a queue, acknowledged; it must be there within the deadline of every step.
    pub async fn get(&self, queue: &str) -> lapin::message::Delivery {
        let end = std::time::Instant::now() + super::stomp::DEADLINE;
        let options = lapin::options::BasicGetOptions { no_ack: true };
        loop {
            if let Some(message) = self.channel.basic_get(queue.into(), options).await.expect("an answer") {
                return message.delivery;
            }
            assert!(std::time::Instant::now() < end, "no message in {queue}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

/// A name that no other test of any process uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").subsec_nanos();
    format!("{prefix}-{}-{}-{nanos}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
