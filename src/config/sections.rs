//! Every key, declared once: name, type with its range, default, meaning. docs/configuration.md is rendered from here.
//!
//! Rules between keys are in `rules`. To add a key, add a field: the file, the environment and the page then know it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::certificates::certificate_files;
use super::kind::{ListMin, boolean, choice, header_value, hsts, list, name, optional, path, secret, table};
use super::log_filter::{LogFilter, log_filter};
use super::quantity::{count, duration, factor, kib, mib, milliseconds, minutes, seconds, size, whole_seconds};
use super::reader::section;
use super::secret::Secret;
use super::url::{BrokerUri, ListenUrl, address_or_none, broker_uri, document_url, host, listen_url, network, origin};
use crate::auth::{Algorithm, DocumentUrl};
use crate::listener::tls::{CertificateFiles, Demand, MinVersion, NameSource};
use crate::listener::{ForwardedHeader, HostPattern, Opcode, OriginPattern};
use crate::session::config::{Compatibility, DestinationDecoding, DurableQueueNaming, HeaderTypes, Replay};
use crate::session::identity::UserCase;
use crate::session::proof::Source;

/// What becomes of a token that was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jwt {
    /// RabbitMQ is given it.
    Broker,
    /// None is accepted.
    Off,
    /// RabbitMQ is given the service account's credentials.
    Relay,
}

const ALGORITHMS: [(&str, Algorithm); 12] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditFailure {
    /// Clients come in without a record.
    Continue,
    /// Nobody comes in.
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Pretty,
    Json,
}

section! {
    /// These keys stand before the first section of the file.
    pub(super) struct Top in "" {
        /// Where WebSocket clients come in. HOST is an IP address, `localhost` or `*` (every IPv4 address); port 0 takes
        /// a free one; the path is `/ws` if none is given. `wss` needs `tls.cert_file` and `tls.key_file`.
        listen: Vec<ListenUrl> = list(listen_url(), ListMin::One), "ws://127.0.0.1:8080/ws";
    }
}

section! {
    /// TLS towards clients.
    pub struct Tls in "tls" {
        /// PEM certificate chain of the server, its own certificate first.
        cert_file: Option<PathBuf> = optional(path()), "";
        /// PEM private key of that certificate, without a pass phrase.
        key_file: Option<PathBuf> = optional(path()), "";
        /// Further pairs, for other host names: a client gets the one whose certificate is for the name it asks for (SNI), else
        /// `cert_file`.
        certificates: Vec<CertificateFiles> = list(certificate_files(), ListMin::Zero), "";
        /// Oldest version of TLS that is spoken.
        min_version: MinVersion = choice(&[("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)]), "1.2";
        /// Whether clients show a certificate (mutual TLS): off asks for none, request takes clients without one too, require
        /// refuses them in the handshake.
        client_auth: Option<Demand> = choice(&[
            ("off", None),
            ("request", Some(Demand::Request)),
            ("require", Some(Demand::Require)),
        ]), "off";
        /// PEM certificates of the authorities that sign clients' certificates.
        client_ca_file: Option<PathBuf> = optional(path()), "";
        /// PEM revocation lists of these authorities. Every authority in a client's chain needs one, and one that is not out
        /// of date.
        client_crl_file: Option<PathBuf> = optional(path()), "";
        /// Which part of a client's certificate is the user's name: the common name, the whole subject (`CN=alice,O=Example`),
        /// or the first DNS name, e-mail address or URI of the alternative names.
        client_name: NameSource = choice(&[
            ("cn", NameSource::CommonName),
            ("dn", NameSource::DistinguishedName),
            ("san_dns", NameSource::SanDns),
            ("san_email", NameSource::SanEmail),
            ("san_uri", NameSource::SanUri),
        ]), "cn";
        /// A client whose TLS handshake takes longer is dropped.
        handshake_timeout: Duration = duration(milliseconds(100)..=minutes(10)), "10s";
    }
}

section! {
    /// RabbitMQ.
    pub struct Broker in "broker" {
        /// The nodes; any one that answers is used. A URI holds no login: clients bring their own. The ports are 5672
        /// and 5671 (`amqps`) if none is given.
        uris: Vec<BrokerUri> = list(broker_uri(), ListMin::One), "amqp://127.0.0.1:5672";
        /// PEM certificates of the authorities that `amqps` nodes are checked against, instead of the system's.
        ca_file: Option<PathBuf> = optional(path()), "";
        /// Virtual host of a client whose CONNECT has no `host` header.
        vhost: String = name(), "/";
        /// Virtual hosts by `host` header of CONNECT; a header that is not named here is itself the name of the virtual
        /// host. Many client libraries send the name of the server they connect to.
        vhosts: BTreeMap<String, String> = table(), "";
        /// Use `vhost` for every client, whatever its `host` header.
        ignore_host: bool = boolean(), "false";
        /// Time for TCP, TLS and the AMQP handshake with one node.
        connect_timeout: Duration = duration(milliseconds(100)..=minutes(10)), "10s";
        /// Login and passcode together, or a token; longer ones are refused. RabbitMQ takes no login above its own
        /// `initial_frame_max` (4 KiB, or more in newer ones), of which the rest of the frame needs about 600 bytes.
        credentials_bytes_max: usize = size(256..=kib(128)), "3KiB";
        /// How long a client waits for a broker at login before it is told that there is none.
        login_wait: Duration = duration(milliseconds(0)..=minutes(10)), "5s";
        /// How long a session waits that lost its broker, or the node of a queue, before it ends.
        grace: Duration = duration(milliseconds(100)..=minutes(60)), "60s";
        /// How long a SEND waits while RabbitMQ blocks publishing because it is short of memory or disk.
        blocked_timeout: Duration = duration(milliseconds(100)..=minutes(24 * 60)), "5m";
        /// Which unconfirmed SENDs are published again after the broker was lost: all, only those with a receipt, or none. A
        /// repeated message has the same message id.
        replay: Replay =
            choice(&[("all", Replay::All), ("receipted", Replay::Receipted), ("none", Replay::None)]), "all";
        /// AMQP heart-beat interval; a silent broker is noticed within twice this time.
        heartbeat: Duration = whole_seconds(seconds(1)..=seconds(60)), "10s";
        /// Time for one answer of RabbitMQ, such as to a declaration.
        operation_timeout: Duration = duration(milliseconds(100)..=minutes(10)), "30s";
        /// Largest AMQP frame; larger ones cost memory per connection, smaller ones split more bodies.
        frame_bytes_max: usize = size(kib(4)..=mib(1)), "128KiB";
        /// Channels on one AMQP connection; more clients open another.
        channels_per_connection_max: u16 = count(1..=1024), "64";
    }
}

section! {
    /// Who may come in.
    pub struct Auth in "auth" {
        /// RabbitMQ user of clients that send no `login`.
        default_login: Option<String> = optional(name()), "";
        /// Its password.
        default_passcode: Option<Secret> = secret(), "";
        /// Where a client may show who it is. `password`: login and passcode of CONNECT, which RabbitMQ checks. A token:
        /// `jwt_header`: in CONNECT's `Authorization: Bearer`; `jwt_passcode`: as CONNECT's passcode; `jwt_http`: in
        /// the upgrade's `Authorization: Bearer`; `jwt_subprotocol`: as the WebSocket subprotocol
        /// `base64url.bearer.authorization.` and the token in base64url, beside `v12.stomp`; `jwt_cookie`: in a cookie.
        /// `basic`: HTTP Basic on the upgrade, which RabbitMQ checks. `certificate`: in the TLS handshake. What CONNECT
        /// shows goes before the rest. Sources of tokens count only with `auth.jwt`.
        sources: Vec<Source> = list(choice(&Source::NAMES), ListMin::One), "password,jwt_header,jwt_passcode,jwt_http";
        /// Name of the cookie for `jwt_cookie`.
        cookie: String = name(), "stomp_relay_token";
        /// Origins of the pages from which that cookie counts, such as `https://app.example.com`, exactly as browsers send
        /// them: any page can make a browser send a cookie.
        cookie_origins: Vec<String> = list(name(), ListMin::Zero), "";
        /// Whether JSON web tokens are accepted, always verified by the relay; then the client works at RabbitMQ with the
        /// credentials of `service_login` (relay), or RabbitMQ is given the token as the password (broker), for which its
        /// OAuth 2 plugin must know the same issuer.
        jwt: Jwt = choice(&[("off", Jwt::Off), ("relay", Jwt::Relay), ("broker", Jwt::Broker)]), "off";
        /// RabbitMQ user of clients that RabbitMQ does not know itself.
        service_login: Option<String> = optional(name()), "";
        /// Its password.
        service_passcode: Option<Secret> = secret(), "";
        /// Key set (JWKS), or public keys or certificates (PEM), that tokens are verified with. It is read again when it
        /// changes.
        keys_file: Option<PathBuf> = optional(path()), "";
        /// URL of the key set, `https`, or `http` on this machine. Without it, and without `keys_file` and `hmac_secret`, the
        /// discovery document of `issuer` says where it is.
        jwks_url: Option<DocumentUrl> = optional(document_url()), "";
        /// PEM certificates of the authorities that the key set's server is checked against, instead of the system's.
        jwks_ca_file: Option<PathBuf> = optional(path()), "";
        /// Secret of at least 32 bytes that tokens are signed with (HS256, HS384, HS512).
        hmac_secret: Option<Secret> = secret(), "";
        /// What a token's `iss` must be, exactly.
        issuer: Option<String> = optional(name()), "";
        /// What a token's `aud` must be, or contain: one of these, exactly.
        audience: Vec<String> = list(name(), ListMin::Zero), "";
        /// Algorithms that are accepted, each only with keys of its kind.
        algorithms: Vec<Algorithm> = list(choice(&ALGORITHMS), ListMin::One),
            "RS256,RS384,RS512,PS256,PS384,PS512,ES256,ES384,EdDSA,HS256,HS384,HS512";
        /// The first of these claims that a token has is the user's name; `a.b` is `b` in the object `a`.
        user_claims: Vec<String> = list(name(), ListMin::One), "sub,client_id";
        /// How far the clocks may differ: a token is good for this long before `nbf` and after `exp`.
        leeway: Duration = whole_seconds(seconds(0)..=seconds(60)), "5s";
        /// Largest token.
        token_bytes_max: usize = size(256..=kib(64)), "8KiB";
        /// Age at which the key set is fetched again.
        jwks_refresh: Duration = duration(seconds(1)..=minutes(24 * 60)), "10m";
        /// Time between two fetches that tokens with unknown keys cause.
        jwks_refetch_min: Duration = duration(milliseconds(10)..=minutes(24 * 60)), "60s";
        /// Age up to which keys are used while their server does not answer.
        jwks_stale_max: Duration = duration(seconds(1)..=minutes(7 * 24 * 60)), "24h";
        /// Time for one fetch.
        jwks_timeout: Duration = duration(milliseconds(10)..=minutes(1)), "5s";
        /// Whether two spellings of a name, such as `Bob` and `bob`, are one user. `exact`: they are two, as for RabbitMQ's own
        /// database. `lower`: they are one, for the rules, the limits and RabbitMQ, which all get lower case. `guarded`, for both
        /// kinds of directory: they are one for rules that deny, limits and `loopback_users`, and two for rules that allow.
        user_case: UserCase = choice(&[
            ("exact", UserCase::Exact),
            ("guarded", UserCase::Guarded),
            ("lower", UserCase::Lower),
        ]), "guarded";
        /// Users that only clients on this machine may log in as.
        loopback_users: Vec<String> = list(name(), ListMin::Zero), "guest";
        /// RabbitMQ checks a login and passcode again at least this often while a connection of that login is shared, and the
        /// binding of each shared subscription that is in use.
        recheck: Duration = duration(seconds(1)..=minutes(24 * 60)), "60s";
        /// A failed login is answered not before this time.
        failure_delay: Duration = duration(milliseconds(0)..=seconds(5)), "300ms";
        /// Failed logins from one IP address (of IPv6: one /64 network) within `failure_window`; then none is looked at until
        /// it ends.
        failures_per_address_max: u32 = count(1..=1_000_000), "20";
        /// Failed logins as one user within `failure_window`; then none is looked at from addresses that have failed.
        failures_per_user_max: u32 = count(1..=1_000_000), "10";
        /// Logins that are judged at a time; the others wait. A login is judged to its end also when its client has left.
        judged_max: usize = count(1..=1_000_000), "5000";
        /// Counting of failed logins starts anew after this time.
        failure_window: Duration = duration(seconds(1)..=minutes(24 * 60)), "60s";
        /// Addresses whose failed logins are remembered, and as many users.
        failures_tracked_max: usize = count(1..=10_000_000), "10000";
        /// Failed logins on one connection before it is closed; with `stomp.compatibility = "strict"` the first one closes it.
        attempts_max: usize = count(1..=1000), "3";
    }
}

section! {
    /// The STOMP dialect and the size of frames.
    pub struct Stomp in "stomp" {
        /// Whether to follow STOMP 1.2 or RabbitMQ's STOMP plugin where the two differ.
        compatibility: Compatibility =
            choice(&[("strict", Compatibility::Strict), ("rabbitmq", Compatibility::Rabbitmq)]), "strict";
        /// Exchange behind `/topic/…`.
        default_topic_exchange: String = name(), "amq.topic";
        /// Whether a NACK without `requeue` header puts the message back into its queue.
        default_nack_requeue: bool = boolean(), "true";
        /// Percent-decoding of destinations: as RabbitMQ's plugin does, or every part in full.
        destination_decoding: DestinationDecoding =
            choice(&[("rabbitmq", DestinationDecoding::Rabbitmq), ("full", DestinationDecoding::Full)]), "rabbitmq";
        /// Names of the queues of durable subscriptions: those of RabbitMQ's STOMP plugin up to 4.3 (legacy), or those of its
        /// rewrite (native).
        durable_queue_naming: DurableQueueNaming =
            choice(&[("legacy", DurableQueueNaming::Legacy), ("native", DurableQueueNaming::Native)]), "legacy";
        /// AMQP header types that become STOMP headers: those that RabbitMQ's plugin shows, or also those it drops.
        header_types: HeaderTypes =
            choice(&[("rabbitmq", HeaderTypes::Rabbitmq), ("all", HeaderTypes::All)]), "rabbitmq";
        /// Whether CONNECTED names RabbitMQ and the relay, and their versions.
        server_header: bool = boolean(), "true";
        /// Largest STOMP frame and WebSocket message after login.
        frame_bytes_max: usize = size(kib(1)..=mib(512)), "4MiB";
        /// Bytes that a client may send before it has logged in.
        login_frame_bytes_max: usize = size(kib(1)..=mib(16)), "64KiB";
        /// Header lines of one frame together.
        header_bytes_max: usize = size(kib(1)..=mib(16)), "128KiB";
        /// Time without a byte of a frame that has begun and is not complete, after which its client is told so and closed. Line ends
        /// that nothing follows do not count: they may be heart-beats.
        frame_timeout: Duration = duration(seconds(1)..=minutes(60)), "30s";
        /// Different headers of one frame.
        header_count_max: usize = count(10..=10_000), "100";
        /// Header lines of one frame, those that repeat a name included.
        header_lines_max: usize = count(10..=100_000), "1000";
        /// Length of one header line.
        header_line_bytes_max: usize = size(256..=mib(1)), "10KiB";
        /// Shortest heart-beat interval that is negotiated; a client that asks for a shorter one gets this.
        heartbeat_min: Duration = duration(milliseconds(10)..=minutes(60)), "1s";
        /// A client is asked by a ping after this many of its heart-beat intervals in silence.
        heartbeat_tolerance: f64 = factor(1.0..=10.0), "2.0";
    }
}

section! {
    /// Bounds of one client's session.
    pub struct Session in "session" {
        /// Time from the opening of the WebSocket to a successful CONNECT.
        login_timeout: Duration = duration(milliseconds(10)..=minutes(10)), "10s";
        /// Subscriptions at a time.
        subscriptions_max: usize = count(1..=100_000), "256";
        /// Bytes that one subscription may hold for as long as it lasts: id, destination, arguments.
        subscription_bytes_max: usize = size(kib(4)..=mib(16)), "32KiB";
        /// Open transactions.
        transactions_max: usize = count(1..=10_000), "16";
        /// Frames in one transaction.
        transaction_frames_max: usize = count(1..=1_000_000), "1024";
        /// Bytes in one transaction.
        transaction_bytes_max: usize = size(kib(1)..=mib(1024)), "4MiB";
        /// Messages in flight of a subscription with `ack:auto` that sets no `prefetch-count`.
        prefetch_auto: u16 = count(1..=65_535), "100";
        /// Unacknowledged messages of a subscription with `ack:client` or `client-individual` that sets no
        /// `prefetch-count`.
        prefetch_client: u16 = count(1..=65_535), "1000";
        /// Bytes that the relay keeps to recognise unacknowledged messages, about 130 for each (their bodies are not kept). Beyond
        /// it the session ends.
        unacked_bytes_max: usize = size(kib(64)..=mib(1024)), "32MiB";
        /// Routing keys in the `CC` and `BCC` of a SEND together.
        copies_max: usize = count(1..=10_000), "100";
        /// SENDs that RabbitMQ has not confirmed; the client is not read at this bound.
        unconfirmed_messages_max: usize = count(1..=100_000), "256";
        /// Bytes of SENDs that RabbitMQ has not confirmed; the client is not read at this bound.
        unconfirmed_bytes_max: usize = size(kib(1)..=mib(1024)), "4MiB";
        /// SENDs a second that a client may make in the long run; a faster one is read no faster than that. 0: RabbitMQ's
        /// confirms alone set the pace.
        send_rate_max: u32 = count(0..=1_000_000), "0";
        /// SENDs that a client may make at once before `send_rate_max` holds it back.
        send_burst_max: u32 = count(1..=1_000_000), "1000";
        /// Bytes that wait to be written to the client; at this bound nothing more is fetched for it.
        write_buffer_bytes_max: usize = size(kib(16)..=mib(1024)), "1MiB";
        /// Bytes of messages that RabbitMQ has sent and that wait for the session, or one message beyond; what comes above it is
        /// requeued once there is room.
        delivery_bytes_max: usize = size(kib(64)..=mib(1024)), "4MiB";
        /// A client that takes no byte for this long is dropped.
        write_timeout: Duration = duration(milliseconds(10)..=minutes(60)), "30s";
        /// A SEND that RabbitMQ does not confirm in this time has failed.
        confirm_timeout: Duration = duration(milliseconds(10)..=minutes(60)), "60s";
        /// Time to finish what is under way after a DISCONNECT.
        disconnect_timeout: Duration = duration(milliseconds(10)..=minutes(10)), "10s";
    }
}

section! {
    /// Topic subscriptions.
    pub struct Subscriptions in "subscriptions" {
        /// Destinations whose slow subscribers lose the oldest messages instead of their connection; `*` at the end stands for
        /// any rest, as in `/topic/ticker.*`.
        drop_oldest: Vec<String> = list(name(), ListMin::Zero), "";
        /// A queue that outlives a lost broker connection for this long, so that no message is missed meanwhile.
        survive: Option<Duration> = optional(duration(seconds(1)..=minutes(24 * 60))), "";
    }
}

section! {
    /// The WebSocket below STOMP.
    pub struct WebSocket in "websocket" {
        /// Silence after which a ping is sent, whatever the STOMP heart-beats are. Keep it below the idle limit of every
        /// proxy on the way; 60s is a common one.
        ping_interval: Duration = duration(milliseconds(10)..=minutes(60)), "25s";
        /// A client that sends nothing for this long after a ping is dropped. Below `ping_interval`.
        pong_timeout: Duration = duration(milliseconds(10)..=minutes(10)), "10s";
        /// Outgoing messages: auto is text when a frame is UTF-8, else binary; binary suits clients whose text messages end
        /// at a NUL, such as React Native.
        frames: Opcode = choice(&[("auto", Opcode::TextWhenUtf8), ("binary", Opcode::Binary)]), "auto";
    }
}

section! {
    /// HTTP on the listen addresses.
    pub struct Http in "http" {
        /// Time for a request's head.
        head_timeout: Duration = duration(milliseconds(10)..=minutes(10)), "10s";
        /// Size of a request's head.
        head_bytes_max: usize = size(kib(8)..=mib(1)), "16KiB";
        /// Origins of the web pages that may connect, such as `https://app.example.com`, `https://*.example.com` (every name
        /// below), `*` (all), or an application's as it sends it: `capacitor://localhost`, `ionic://localhost`, `file://`,
        /// `chrome-extension://ID`. `null` stands for files, and for whatever page hides its origin in a frame. `wss` counts as
        /// `https`, `ws` as `http`. Empty: pages of the host that the request names, over the same scheme. Clients that are no
        /// browser send no origin and may connect.
        origins: Vec<OriginPattern> = list(origin(), ListMin::Zero), "";
        /// Names by which clients may call the relay (`Host`), such as `chat.example.com`, `*.example.com` (every name below) or `*`
        /// (any): a page whose own name was made to point here is refused. Empty: the addresses of `listen` (every address where
        /// it is at all of them), `localhost`, the machine's name, the names of the certificates and of `http.origins`; then
        /// programs, which send no origin, may call its WebSocket by any name.
        hosts: Vec<HostPattern> = list(host(), ListMin::Zero), "";
        /// Directory of static files that are served beside the WebSocket.
        root: Option<PathBuf> = optional(path()), "";
        /// `Content-Security-Policy` of static files.
        content_security_policy: String = header_value(),
            "default-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             object-src 'none'";
        /// `Strict-Transport-Security` of every answer over TLS: browsers then use https for this host only. Begin with a short
        /// time, such as `max-age=3600`; later `max-age=63072000; includeSubDomains` is usual.
        hsts: Option<String> = optional(hsts()), "";
        /// Address of a listener in the clear, such as `0.0.0.0:80`, that sends every request to https, on the port of the first
        /// `wss` address of `listen`.
        redirect_listen: Option<SocketAddr> = address_or_none(), "none";
    }
}

section! {
    /// Proxies and load balancers in front; [proxies.md](proxies.md) has tested examples.
    pub struct Proxy in "proxy" {
        /// Addresses or networks of HTTP proxies whose `header` is believed, such as `10.0.0.0/8`.
        trusted: Vec<IpNet> = list(network(), ListMin::Zero), "";
        /// The header in which they name the client. The other one is never read: proxies pass it on as the client wrote it.
        header: ForwardedHeader = choice(&[
            ("x-forwarded-for", ForwardedHeader::XForwardedFor),
            ("forwarded", ForwardedHeader::Forwarded),
        ]), "x-forwarded-for";
        /// Addresses or networks of TCP proxies: connections from them must begin with a PROXY protocol header, version 1 or
        /// 2; others are never searched for one.
        protocol_from: Vec<IpNet> = list(network(), ListMin::Zero), "";
    }
}

section! {
    /// Bounds of the whole process. An IPv6 address counts by its /64 network.
    pub struct Limits in "limits" {
        /// Client connections at a time.
        connections_max: usize = count(1..=10_000_000), "10000";
        /// Client connections at a time from one IP address.
        connections_per_address_max: usize = count(1..=10_000_000), "1000";
        /// Client connections at a time from one network, see `network_ipv4_bits`.
        connections_per_network_max: usize = count(1..=10_000_000), "4000";
        /// Client connections at a time of one user.
        connections_per_user_max: usize = count(1..=10_000_000), "10000";
        /// Memory of the process. Empty: three quarters of the machine's, or of the control group's where that has less; `check`
        /// and the log at the start show it. Near it newcomers are told to come later, then those who hold most are ended.
        memory_max: Option<usize> = optional(size(mib(64)..=mib(1 << 20))), "";
        /// Memory that one session may hold. Empty: 128 MiB, or a quarter of `memory_max` where that is less. At least three
        /// times `stomp.frame_bytes_max`.
        session_bytes_max: Option<usize> = optional(size(mib(1)..=mib(1 << 20))), "";
        /// Memory that all sessions of one user may hold together; beyond it the largest is ended. Empty: no bound of its own.
        user_bytes_max: Option<usize> = optional(size(mib(1)..=mib(1 << 20))), "";
        /// Of `connections_max`, client connections that have not logged in. Where this or another of these limits is reached, the
        /// oldest of them gives its place to the newcomer: of the same address or network, or of the network that has most.
        strangers_max: usize = count(1..=10_000_000), "5000";
        /// Time from accept to CONNECTED, whatever the client does meanwhile; also the longest life of a connection that is used
        /// for other requests only.
        stranger_timeout: Duration = duration(milliseconds(10)..=minutes(10)), "30s";
        /// Bits of an IPv4 address that tell networks apart.
        network_ipv4_bits: u8 = count(0..=32), "24";
        /// Bits of an IPv6 address that tell networks apart: providers give a /48 to a site, and a /64 to a customer.
        network_ipv6_bits: u8 = count(0..=64), "48";
        /// Connections, beyond those, that are kept just long enough to tell the client which limit it has met.
        refusals_max: usize = count(0..=1_000_000), "100";
        /// New connections in a second; 0: no limit. Those beyond wait for their turn.
        handshake_rate_max: u32 = count(0..=1_000_000), "1000";
        /// New connections at once, before `handshake_rate_max` holds them back.
        handshake_burst_max: u32 = count(1..=1_000_000), "5000";
        /// New connections in a second from one IP address; 0: no limit.
        handshake_rate_per_address_max: u32 = count(0..=1_000_000), "200";
        /// New connections at once from one IP address.
        handshake_burst_per_address_max: u32 = count(1..=1_000_000), "1000";
        /// Logins (CONNECT) in a second; 0: no limit. Those beyond wait for their turn.
        connect_rate_max: u32 = count(0..=1_000_000), "1000";
        /// Logins at once, before `connect_rate_max` holds them back.
        connect_burst_max: u32 = count(1..=1_000_000), "5000";
        /// Logins in a second from one IP address; 0: no limit.
        connect_rate_per_address_max: u32 = count(0..=1_000_000), "200";
        /// Logins at once from one IP address.
        connect_burst_per_address_max: u32 = count(1..=1_000_000), "1000";
        /// Longest wait for a turn; a client that would wait longer is refused. Rate times this is the longest queue.
        rate_wait_max: Duration = duration(milliseconds(0)..=minutes(1)), "5s";
    }
}

section! {
    /// Health and metrics for operators. Keep it away from the internet.
    pub struct Admin in "admin" {
        /// Address of `/livez`, `/readyz` and `/metrics`.
        listen: Option<SocketAddr> = address_or_none(), "127.0.0.1:15680";
        /// Names by which it may be called, besides `localhost`, IP addresses, the machine's name, and names that nobody on the
        /// internet can own: those without a dot and those that end in `.local` or `.internal`. `*` stands for any.
        hosts: Vec<HostPattern> = list(host(), ListMin::Zero), "";
    }
}

section! {
    /// What happens on SIGTERM.
    pub struct Drain in "drain" {
        /// New clients are still accepted for this long, until load balancers have seen `/readyz` fail.
        delay: Duration = duration(milliseconds(0)..=minutes(60)), "1s";
        /// Clients are closed one after the other over this time, so that they do not reconnect all at once.
        spread: Duration = duration(milliseconds(0)..=minutes(60)), "20s";
        /// The process ends after this time at the latest. At least `delay` and `spread` together.
        timeout: Duration = duration(milliseconds(10)..=minutes(120)), "30s";
    }
}

section! {
    /// The log, on standard error, one line per event, in UTC. A line that standard error does not take, because its disk is full or its
    /// reader gone or too slow, is lost and counted (`log_lines_lost_total`); the clients do not wait for it.
    pub struct Log in "log" {
        /// What is logged: `error`, `warn`, `info`, `debug`, `trace` or `off`, also by part of the program, as in
        /// `warn,stomp_relay::broker=debug`. Libraries that log messages or passwords are capped.
        level: LogFilter = log_filter(), "info";
        /// Auto is pretty on a terminal, else JSON.
        format: LogFormat =
            choice(&[("auto", LogFormat::Auto), ("pretty", LogFormat::Pretty), ("json", LogFormat::Json)]), "auto";
        /// File that the audit log is added to, as JSON lines: connections, logins, denials, reloads; none without. SIGHUP
        /// opens it anew, for those who rotate it.
        audit_file: Option<PathBuf> = optional(path()), "";
        /// What happens while the audit log can't be written, as on a full disk: events are lost and counted, and clients come in
        /// all the same (continue), or nobody comes in until it can be written again (refuse). Sessions that are open go on.
        audit_failure: AuditFailure =
            choice(&[("continue", AuditFailure::Continue), ("refuse", AuditFailure::Refuse)]), "continue";
    }
}

section! {
    /// How the process uses the machine.
    pub struct Runtime in "runtime" {
        /// Threads that serve clients; 0 stands for one less than the machine has processors, and at least one: each AMQP
        /// connection has a thread of its own, which needs its turn.
        worker_threads: usize = count(0..=1024), "0";
    }
}

impl Runtime {
    /// Threads that serve clients on a machine with so many processors.
    pub fn threads(&self, processors: usize) -> usize {
        match self.worker_threads {
            0 => processors.saturating_sub(1).max(1),
            threads => threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_left_to_the_amqp_connections_unless_threads_are_asked_for() {
        let threads = |worker_threads, processors| Runtime { worker_threads }.threads(processors);
        assert_eq!([threads(0, 1), threads(0, 2), threads(0, 16), threads(5, 2)], [1, 1, 15, 5]);
    }
}
