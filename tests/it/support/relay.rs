//! A relay in this process, on free ports, in front of the shared private RabbitMQ. Ends when it is dropped.

use std::net::SocketAddr;
use std::path::PathBuf;

use stomp_relay::config::{Config, Overrides};
use stomp_relay::server::{Ended, Reload, Server, Signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::rabbit::Rabbit;
use super::scratch::Scratch;
use super::stomp::Client;

pub struct Relay {
    pub admin: SocketAddr,
    /// Of the throw-away authority that signed the certificate of `wss`.
    pub ca: PathBuf,
    pub ws: String,
    pub wss: String,
    ended: JoinHandle<Ended>,
    /// Holds the certificate.
    folder: Scratch,
    signals: mpsc::Sender<Signal>,
}

impl Relay {
    /// With the defaults, but a quick drain.
    pub fn start(rabbit: &Rabbit) -> Relay {
        Relay::start_with(rabbit, "")
    }

    /// As RabbitMQ's released plugin behaves.
    pub fn start_compatible(rabbit: &Rabbit) -> Relay {
        Relay::start_with(rabbit, "[stomp]\ncompatibility = \"rabbitmq\"\n")
    }

    /// `settings` is TOML that goes over the defaults. Must be called within a tokio runtime.
    pub fn start_with(rabbit: &Rabbit, settings: &str) -> Relay {
        Relay::start_at(&rabbit.uri(), settings)
    }

    /// In front of whatever answers at `broker`.
    pub fn start_at(broker: &str, settings: &str) -> Relay {
        Relay::start_before(&[broker.to_owned()], settings)
    }

    /// In front of any of these nodes.
    pub fn start_before(brokers: &[String], settings: &str) -> Relay {
        let folder = Scratch::new();
        let certificate = stomp_relay::dev_cert::write(folder.folder(), stomp_relay::dev_cert::Existing::Keep)
            .expect("a certificate can be made");
        let file = folder.path("stomp-relay.toml");
        std::fs::write(&file, settings).expect("the scratch folder can be written");
        let flags = Overrides {
            admin: Some("127.0.0.1:0".to_owned()),
            broker: brokers.to_vec(),
            listen: vec!["ws://127.0.0.1:0/ws".to_owned(), "wss://127.0.0.1:0/ws".to_owned()],
            tls_cert: Some(certificate.cert.clone()),
            tls_key: Some(certificate.key.clone()),
        };
        let quick = [("DELAY", "0s"), ("SPREAD", "0s"), ("TIMEOUT", "10s")];
        let environment = quick.map(|(key, value)| (format!("STOMP_RELAY_DRAIN__{key}"), value.to_owned()));
        let given = |key: &str| settings.contains("[drain]") && key.contains("DRAIN");
        let environment = environment.into_iter().filter(move |(key, _)| !given(key)).collect::<Vec<_>>();
        let load = move || Config::load(Some(&file), environment.clone().into_iter(), &flags);
        let config = load().unwrap_or_else(|problems| panic!("{problems}"));
        let server = Server::bind(config).expect("free ports can be bound");
        let mut urls = server.urls().into_iter();
        let (ws, wss) = (urls.next().expect("two were asked for"), urls.next().expect("two were asked for"));
        let admin = server.admin_address().expect("it was asked for");
        let (signals, receiver) = mpsc::channel(2);
        let ended = tokio::spawn(server.run(receiver, Reload { load: Box::new(load), applied: Box::new(|_| {}) }));
        Relay { admin, ca: certificate.ca, ws, wss, ended, folder, signals }
    }

    /// A client that is logged in as guest on `/` with STOMP 1.2, in the clear.
    pub async fn client(&self) -> Client {
        self.client_with("accept-version:1.2\nhost:/\nlogin:guest\npasscode:guest").await
    }

    /// A logged-in client; `headers` are the lines of its CONNECT.
    pub async fn client_with(&self, headers: &str) -> Client {
        let mut client = Client::open(&self.ws).await;
        client.send(&format!("CONNECT\n{headers}\n\n")).await;
        client.expect("CONNECTED").await;
        client
    }

    /// The same over TLS.
    pub async fn tls_client(&self) -> Client {
        let mut client = Client::open_tls(&self.wss, &self.ca).await;
        client.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n").await;
        client.expect("CONNECTED").await;
        client
    }

    /// A logged-in client of this STOMP version.
    pub async fn client_of(&self, version: &str) -> Client {
        self.client_with(&format!("accept-version:{version}\nhost:/\nlogin:guest\npasscode:guest")).await
    }

    /// Puts other settings into its file, for a reload.
    pub fn rewrite(&self, settings: &str) {
        self.folder.write("stomp-relay.toml", settings);
    }

    pub async fn signal(&self, signal: Signal) {
        self.signals.send(signal).await.expect("the relay runs");
    }

    /// Waits until the server has ended.
    pub async fn ended(self) -> Ended {
        self.ended.await.expect("the server does not panic")
    }
}
