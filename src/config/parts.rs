//! From the configuration to what the parts want: each owns a small struct of its own and knows nothing of files.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::quantity::size_text;
use super::{BrokerUri, Config, Jwt, ListenUrl, Scheme};

use crate::auth::{
    AttemptLimits, AuthConfig, Authenticator, KeySet, KeySourceConfig, Keys, Origin, Rules, TokenConfig, Upstream,
};
use crate::broker::{BrokerConfig, Encryption, Node};
use crate::budget::machine::Memory;
use crate::budget::{BudgetLimits, STRANGER_BYTES};
use crate::clients::{ClientLimits, NetworkSize, PaceLimits};
use crate::connection::ConnectionConfig;
use crate::listener::tls::{Acceptor, CertificateFiles, ClientAuth, TlsConfig, handshake_bytes_max};
use crate::listener::{
    CookieConfig, HostConfig, HostPattern, ListenerConfig, Literals, OriginPattern, PresentedConfig, ProxyConfig,
    StaticRoot, WebSocketConfig,
};
use crate::rate::Rate;
use crate::session::amqp::ShortText;
use crate::session::command::Credentials;
use crate::session::config::{Compatibility, HostHeader, SessionConfig, VirtualHosts};
use crate::session::proof::Source;
use crate::session::rules::Stance;
use crate::stomp::{Escapes, Limits};

/// How many times the rate of one address a network has.
const NETWORK_FACTOR: u32 = 2;

/// For the closing handshake with a client, and for giving its lease back.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Of the machine's memory, so many parts …
const MEMORY_PARTS: usize = 4;
/// … are the relay's by default.
const MEMORY_PARTS_USED: usize = 3;
/// Of the relay's, so many sessions at their limit fill it by default.
const SESSION_PARTS: usize = 4;
const SESSION_BYTES_MAX: usize = 128 << 20;
/// How often a frame that is being read may be in memory: in its WebSocket message, and in a buffer that is twice as large.
pub(super) const FRAME_COPIES: usize = 3;

impl Config {
    pub fn broker_config(&self) -> BrokerConfig {
        let broker = &self.broker;
        BrokerConfig {
            nodes: broker.uris.iter().map(node).collect(),
            ca: broker.ca_file.clone(),
            connect_timeout: broker.connect_timeout,
            credentials_bytes_max: broker.credentials_bytes_max,
            login_wait: broker.login_wait,
            heartbeat: broker.heartbeat,
            // At most 1 MiB by the key's range.
            frame_bytes_max: u32::try_from(broker.frame_bytes_max).unwrap_or(u32::MAX),
            channels_per_link_max: broker.channels_per_connection_max,
            operation_timeout: broker.operation_timeout,
            recheck: self.auth.recheck,
            delivery_bytes_max: self.session.delivery_bytes_max,
            shared_buffer_bytes_max: self.session.write_buffer_bytes_max,
            confirm_timeout: self.session.confirm_timeout,
            ..BrokerConfig::default()
        }
    }

    pub fn connection_config(&self, auth: Arc<Authenticator>, tls: Option<Arc<Acceptor>>) -> ConnectionConfig {
        let stomp = &self.stomp;
        let limits = |frame_bytes_max| Limits {
            frame_bytes_max,
            header_bytes_max: stomp.header_bytes_max,
            header_count_max: stomp.header_count_max,
            header_line_bytes_max: stomp.header_line_bytes_max,
            header_lines_max: stomp.header_lines_max,
        };
        ConnectionConfig {
            auth,
            close_timeout: CLOSE_TIMEOUT,
            escapes: match stomp.compatibility {
                Compatibility::Rabbitmq => Escapes::All,
                Compatibility::Strict => Escapes::ExceptConnect,
            },
            limits: limits(stomp.frame_bytes_max),
            login_limits: limits(stomp.login_frame_bytes_max),
            session: Arc::new(self.session_config()),
            tls,
            write_buffer_bytes_max: self.session.write_buffer_bytes_max,
            write_timeout: self.session.write_timeout,
        }
    }

    pub fn auth_config(&self) -> AuthConfig {
        let auth = &self.auth;
        let service = auth.service_login.as_ref().zip(auth.service_passcode.as_ref());
        let service = service
            .map(|(login, passcode)| Credentials { login: login.clone(), passcode: passcode.expose().to_owned() });
        let attempts = AttemptLimits {
            delay: auth.failure_delay,
            failures_per_address_max: auth.failures_per_address_max,
            failures_per_user_max: auth.failures_per_user_max,
            judged_max: auth.judged_max,
            tracked_max: auth.failures_tracked_max,
            window: auth.failure_window,
        };
        let upstream = match auth.jwt {
            Jwt::Off => return AuthConfig { attempts, service, tokens: None, user_case: auth.user_case },
            Jwt::Broker => Upstream::Token,
            Jwt::Relay => Upstream::Service,
        };
        let rules = Rules {
            algorithms: auth.algorithms.clone(),
            audiences: auth.audience.clone(),
            issuer: auth.issuer.clone(),
            leeway: auth.leeway,
            token_bytes_max: auth.token_bytes_max,
            user_claims: auth.user_claims.clone(),
        };
        // Checked by the rules between keys: there are keys.
        let tokens = self.token_keys().map(|keys| TokenConfig { keys, rules, upstream });
        AuthConfig { attempts, service, tokens, user_case: auth.user_case }
    }

    fn token_keys(&self) -> Option<Keys> {
        let auth = &self.auth;
        let origin = match (&auth.keys_file, &auth.jwks_url, &auth.hmac_secret, &auth.issuer) {
            (Some(path), ..) => Origin::File(path.clone()),
            (None, Some(url), ..) => Origin::Url(url.clone()),
            (None, None, Some(secret), _) => return KeySet::of_secret(secret.expose()).ok().map(Keys::Fixed),
            (None, None, None, issuer) => Origin::Issuer(issuer.clone()?),
        };
        Some(Keys::Source(KeySourceConfig {
            ca: auth.jwks_ca_file.clone(),
            origin,
            timeout: auth.jwks_timeout,
            refresh: auth.jwks_refresh,
            refetch_min: auth.jwks_refetch_min,
            stale_max: auth.jwks_stale_max,
        }))
    }

    pub fn session_config(&self) -> SessionConfig {
        let (stomp, session) = (&self.stomp, &self.session);
        let default_credentials = self.auth.default_login.as_ref().zip(self.auth.default_passcode.as_ref());
        SessionConfig {
            blocked_timeout: self.broker.blocked_timeout,
            compatibility: stomp.compatibility,
            copies_max: session.copies_max,
            default_credentials: default_credentials
                .map(|(login, passcode)| Credentials { login: login.clone(), passcode: passcode.expose().to_owned() }),
            default_nack_requeue: stomp.default_nack_requeue,
            // Checked by the key's type, which allows no more bytes than an exchange name may have.
            default_topic_exchange: ShortText::new(&*stomp.default_topic_exchange).unwrap_or_default(),
            destination_decoding: stomp.destination_decoding,
            disconnect_timeout: session.disconnect_timeout,
            drop_oldest: self.subscriptions.drop_oldest.clone(),
            durable_queue_naming: stomp.durable_queue_naming,
            frame_timeout: stomp.frame_timeout,
            grace: self.broker.grace,
            header_types: stomp.header_types,
            heartbeat_min: stomp.heartbeat_min,
            heartbeat_tolerance: stomp.heartbeat_tolerance,
            // At most 1000 by the key's range.
            login_attempts_max: u32::try_from(self.auth.attempts_max).unwrap_or(u32::MAX),
            login_timeout: session.login_timeout,
            loopback_users: self.auth.loopback_users.clone(),
            ping_interval: self.websocket.ping_interval,
            pong_timeout: self.websocket.pong_timeout,
            prefetch_auto: session.prefetch_auto,
            prefetch_client: session.prefetch_client,
            replay: self.broker.replay,
            rules: Arc::new(self.rule_set()),
            send_rate: Rate { per_second: session.send_rate_max, burst: session.send_burst_max },
            server_header: stomp.server_header.then(|| concat!("stomp-relay/", env!("CARGO_PKG_VERSION")).to_owned()),
            // RabbitMQ judges what a client does with its own user; a service account may do what no client may.
            stance: if self.auth.service_login.is_some() { Stance::Closed } else { Stance::Open },
            sources: self.sources(),
            subscription_bytes_max: session.subscription_bytes_max,
            user_case: self.auth.user_case,
            subscriptions_max: session.subscriptions_max,
            survive: self.subscriptions.survive,
            transaction_bytes_max: session.transaction_bytes_max,
            transaction_frames_max: session.transaction_frames_max,
            transactions_max: session.transactions_max,
            unacked_bytes_max: session.unacked_bytes_max,
            unconfirmed_bytes_max: session.unconfirmed_bytes_max,
            unconfirmed_messages_max: session.unconfirmed_messages_max,
            virtual_hosts: VirtualHosts {
                default: self.broker.vhost.clone(),
                host_header: match self.broker.ignore_host {
                    true => HostHeader::Ignored,
                    false => HostHeader::Named(self.broker.vhosts.clone().into_iter().collect()),
                },
            },
        }
    }

    pub fn client_limits(&self) -> ClientLimits {
        let limits = &self.limits;
        let pace = |(per_second, burst), (each_per_second, each_burst)| PaceLimits {
            everybody: Rate { per_second, burst },
            each_address: Rate { per_second: each_per_second, burst: each_burst },
            network_factor: NETWORK_FACTOR,
            wait_max: limits.rate_wait_max,
        };
        ClientLimits {
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            connections_per_network_max: limits.connections_per_network_max,
            connections_per_user_max: limits.connections_per_user_max,
            network: NetworkSize { ipv4_bits: limits.network_ipv4_bits, ipv6_bits: limits.network_ipv6_bits },
            strangers_max: limits.strangers_max,
            stranger_timeout: limits.stranger_timeout,
            refusals_max: limits.refusals_max,
            connects: pace(
                (limits.connect_rate_max, limits.connect_burst_max),
                (limits.connect_rate_per_address_max, limits.connect_burst_per_address_max),
            ),
            handshakes: pace(
                (limits.handshake_rate_max, limits.handshake_burst_max),
                (limits.handshake_rate_per_address_max, limits.handshake_burst_per_address_max),
            ),
        }
    }

    /// What may be held in memory, on a machine that has so much.
    pub fn budget_limits(&self, memory: Memory) -> BudgetLimits {
        let limits = &self.limits;
        let process = limits.memory_max.unwrap_or(memory.bytes / MEMORY_PARTS * MEMORY_PARTS_USED);
        let least = self.stomp.frame_bytes_max.saturating_mul(FRAME_COPIES);
        let session = limits.session_bytes_max.unwrap_or((process / SESSION_PARTS).min(SESSION_BYTES_MAX).max(least));
        let handshake = handshake_bytes_max(self.tls.client_auth.is_some());
        let stranger = STRANGER_BYTES + self.http.head_bytes_max.max(handshake);
        BudgetLimits { process, session, stranger, user: limits.user_bytes_max.unwrap_or(usize::MAX) }
    }

    /// The same for people: how much, and where the number comes from.
    pub fn budget_text(&self, memory: Memory) -> String {
        let BudgetLimits { process, session, .. } = self.budget_limits(memory);
        let (process, session) = (rounded(process), rounded(session));
        let origin = match self.limits.memory_max {
            Some(_) => "limits.memory_max".to_owned(),
            None => format!("three quarters of {} {}", memory.source.owner(), rounded(memory.bytes)),
        };
        format!("memory {process} ({origin}), {session} for a session")
    }

    /// None without a certificate.
    pub fn tls_config(&self) -> Option<TlsConfig> {
        let (cert, key) = self.tls.cert_file.clone().zip(self.tls.key_file.clone())?;
        let mut certificates = vec![CertificateFiles { cert, key }];
        certificates.extend(self.tls.certificates.iter().cloned());
        let client_auth = self.tls.client_auth.zip(self.tls.client_ca_file.clone()).map(|(demand, ca)| ClientAuth {
            demand,
            ca,
            crl: self.tls.client_crl_file.clone(),
            name: self.tls.client_name,
        });
        Some(TlsConfig { certificates, min_version: self.tls.min_version, client_auth })
    }

    /// Names of a listener at this address; `certificates` are those of all listeners.
    pub fn host_config(&self, address: IpAddr, certificates: Option<Arc<Acceptor>>) -> HostConfig {
        let of_pages = self.http.origins.iter().filter_map(OriginPattern::host);
        let of_pages =
            of_pages.map(|(name, below)| if below { HostPattern::Below(name) } else { HostPattern::Exact(name) });
        HostConfig {
            listed: self.http.hosts.clone(),
            further: of_pages.chain(machine_name()).collect(),
            literals: if address.is_unspecified() { Literals::Any } else { Literals::Only(address) },
            private: false,
            certificates,
        }
    }

    /// Names of the operators' listener: its clients are probes and scrapers, which call it by what the network calls it.
    pub fn admin_host_config(&self) -> HostConfig {
        let further = self.admin.hosts.iter().cloned().chain(machine_name()).collect();
        HostConfig { listed: Vec::new(), further, literals: Literals::Any, private: true, certificates: None }
    }

    fn presented_config(&self) -> PresentedConfig {
        let sources = self.sources();
        let on = |source| sources.contains(&source);
        let cookie = || CookieConfig { name: self.auth.cookie.clone(), origins: self.auth.cookie_origins.clone() };
        PresentedConfig {
            basic: on(Source::Basic),
            bearer: on(Source::JwtHttp),
            cookie: on(Source::JwtCookie).then(cookie),
            subprotocol: on(Source::JwtSubprotocol),
        }
    }

    /// Without those of tokens while none is accepted.
    fn sources(&self) -> Vec<Source> {
        let accepted = |source: &Source| self.auth.jwt != Jwt::Off || !source.is_token();
        self.auth.sources.iter().copied().filter(accepted).collect()
    }

    /// What all listeners share; address, path and TLS are each one's own. `certificates` are those of all.
    pub fn listener_config(
        &self,
        url: &ListenUrl,
        certificates: Option<Arc<Acceptor>>,
        root: Option<StaticRoot>,
    ) -> ListenerConfig {
        ListenerConfig {
            path: url.path.clone(),
            hosts: self.host_config(url.address.ip(), certificates.clone()),
            tls: certificates.filter(|_| url.scheme == Scheme::Wss),
            tls_handshake_timeout: self.tls.handshake_timeout,
            head_timeout: self.http.head_timeout,
            head_bytes_max: self.http.head_bytes_max,
            root,
            content_security_policy: self.http.content_security_policy.clone(),
            origins: self.http.origins.clone(),
            proxy: ProxyConfig {
                trusted: self.proxy.trusted.clone(),
                protocol_from: self.proxy.protocol_from.clone(),
                header: self.proxy.header,
            },
            strict_transport_security: self.http.hsts.clone(),
            presented: self.presented_config(),
            websocket: WebSocketConfig {
                message_bytes_max: self.stomp.login_frame_bytes_max,
                opcode: self.websocket.frames,
            },
        }
    }
}

/// What the machine is called, where Linux tells it.
fn machine_name() -> Option<HostPattern> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    name.trim().parse().ok().filter(|pattern| matches!(pattern, HostPattern::Exact(_)))
}

fn node(uri: &BrokerUri) -> Node {
    let encryption = if uri.tls { Encryption::Tls } else { Encryption::Plain };
    Node { host: uri.host.clone(), port: uri.port, encryption }
}

/// In whole MiB: nobody wants to read more of a machine's memory.
fn rounded(bytes: usize) -> String {
    size_text(bytes >> 20 << 20)
}
