//! Settings that are each allowed and together undo a defence. Each warning says what is open, and what closes it.
//!
//! Nothing here is a mistake that can be told from an intention, so nothing is refused: `check --strict` does that.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::quantity::size_text;
use super::{Config, Jwt, Rule, Scheme};
use crate::budget::machine::{self, Memory};
use crate::listener::{HostPattern, OriginPattern};
use crate::session::config::Compatibility;
use crate::session::proof::Source;
use crate::session::rules::Effect;

/// Networks with shorter prefixes are no proxies of one's own.
const PREFIX_MIN: (u8, u8) = (8, 32);
const LEEWAY_MAX: Duration = Duration::from_secs(30);
const RECHECK_MAX: Duration = Duration::from_secs(15 * 60);
const ATTEMPTS_MAX: usize = 20;
const FAILURE_WINDOW_MIN: Duration = Duration::from_secs(30);
const STRANGER_TIMEOUT_MAX: Duration = Duration::from_secs(2 * 60);
/// Fewer bits put a provider's customers, or a country, into one network.
const NETWORK_BITS_MIN: (u8, u8) = (16, 32);
/// More failures than people have.
const FAILURES_MAX: u32 = 1000;
/// Endings of names that are no names of the internet.
const INNER_NAMES: [&str; 8] = ["internal", "local", "localhost", "lan", "svc", "intranet", "corp", "home.arpa"];

impl Config {
    /// One text for each.
    pub fn openings(&self) -> Vec<String> {
        let mut texts = Vec::new();
        let mut warn = |open: bool, text: &str| {
            if open {
                texts.push(text.to_owned());
            }
        };
        self.pages(&mut warn);
        self.network(&mut warn);
        self.proofs(&mut warn);
        self.service(&mut warn);
        self.bounds(&mut warn);
        texts
    }

    /// A budget that is never reached is none: the machine's memory runs out before.
    pub(super) fn memory_beyond(&self, memory: Memory) -> Option<String> {
        let beyond = memory.source != machine::Source::Unknown && self.limits.memory_max? > memory.bytes;
        let text = format!(
            "limits.memory_max is more than {} {}: the process is killed before anybody is told to come later; lower it",
            memory.source.owner(),
            size_text(memory.bytes)
        );
        beyond.then_some(text)
    }

    fn accepts(&self, source: Source) -> bool {
        self.auth.sources.contains(&source)
    }

    /// Clients may come from elsewhere than this machine.
    fn is_public(&self) -> bool {
        self.listen.iter().any(|url| !url.address.ip().is_loopback())
    }

    fn pages(&self, warn: &mut impl FnMut(bool, &str)) {
        let every_page = self.http.origins.iter().any(admits_strangers);
        let basic = self.accepts(Source::Basic);
        let cookie = self.accepts(Source::JwtCookie) && self.auth.jwt != Jwt::Off;
        warn(
            every_page && basic,
            "http.origins has an entry that fits pages of anybody (\"*\", \"null\", \"file://\", \"https://*.com\"), with basic in auth.sources: browsers repeat HTTP Basic unasked, so every page can act as its \
             visitor; name the origins",
        );
        warn(
            every_page && cookie,
            "http.origins has an entry that fits pages of anybody (\"*\", \"null\", \"file://\", \"https://*.com\"), with jwt_cookie in auth.sources: only auth.cookie_origins stands between other pages and the \
             visitors' cookies; name the origins",
        );
        warn(
            every_page && self.tls.client_auth.is_some(),
            "http.origins has an entry that fits pages of anybody (\"*\", \"null\", \"file://\", \"https://*.com\"), with tls.client_auth: browsers show a certificate to every page's connections, so every page can \
             act as its visitor; name the origins",
        );
        warn(
            every_page && self.auth.default_login.is_some(),
            "http.origins has an entry that fits pages of anybody (\"*\", \"null\", \"file://\", \"https://*.com\"), with auth.default_login: every page comes in as that user, from within the visitor's network; \
             name the origins",
        );
        let any = |hosts: &[HostPattern]| hosts.iter().any(fits_strangers);
        warn(
            any(&self.http.hosts) && self.http.origins.is_empty(),
            "http.hosts has \"*\", or all of a top-level domain, without http.origins: a page whose own name was made to point here counts as the relay's own; name \
             the hosts, or the origins",
        );
        warn(
            any(&self.admin.hosts),
            "admin.hosts has \"*\", or all of a top-level domain: a page whose own name was made to point here reads the metrics; name the hosts",
        );
        let unasked = basic || self.tls.client_auth.is_some() || self.auth.default_login.is_some();
        let page_in_clear = |origin: &OriginPattern| {
            origin.is_in_clear() && origin.host().is_some_and(|(host, _)| !is_inner_host(&host))
        };
        warn(
            unasked && self.http.origins.iter().any(page_in_clear),
            "http.origins has an origin with http://, with basic, tls.client_auth or auth.default_login: whoever is on the way can put \
             a page there that acts as its visitor; use https://",
        );
        warn(
            self.http.root.is_some() && self.http.content_security_policy.is_empty(),
            "http.content_security_policy is empty, with http.root: a page there may load scripts from anywhere; leave the key out \
             for its default",
        );
        warn(
            self.http.root.as_deref() == Some(Path::new("/")),
            "http.root is /: everybody may read each file of this machine that the relay may read; use a folder of its own",
        );
        let in_clear = |origin: &String| origin.strip_prefix("http://").is_some_and(|host| !is_inner_host(host));
        warn(
            cookie && self.auth.cookie_origins.iter().any(in_clear),
            "auth.cookie_origins has an origin with http://: whoever is on the way can put a page there that acts as its visitor; \
             use https://",
        );
    }

    fn network(&self, warn: &mut impl FnMut(bool, &str)) {
        let wide = |networks: &[IpNet]| networks.iter().any(is_wide) || is_wide_in_all(networks);
        warn(
            wide(&self.proxy.trusted),
            "proxy.trusted has networks that are much of the internet: every client can say what its address is, and so get around \
             each limit per address and auth.loopback_users; name the proxies",
        );
        warn(
            wide(&self.proxy.protocol_from),
            "proxy.protocol_from has networks that are much of the internet: every client can say what its address is, and so get \
             around each limit per address and auth.loopback_users; name the proxies",
        );
        let behind_proxy = !self.proxy.trusted.is_empty() || !self.proxy.protocol_from.is_empty();
        let clear = |address: IpAddr| !is_inner(address);
        let in_clear = self.listen.iter().any(|url| url.scheme == Scheme::Ws && clear(url.address.ip()));
        warn(
            in_clear && !behind_proxy,
            "listen has a public address with ws://: passwords, tokens and messages pass in the clear; use wss:// with \
             tls.cert_file, or name the proxy that ends TLS in proxy.trusted",
        );
        warn(
            self.admin.listen.is_some_and(|address| clear(address.ip())),
            "admin.listen is a public address: metrics tell everybody who is here; use 127.0.0.1 or an inner address",
        );
        let remote = self.broker.uris.iter().any(|uri| !uri.tls && !is_inner_host(&uri.host));
        warn(
            remote,
            "broker.uris has amqp:// to a public host: passwords, tokens and messages pass in the clear; use amqps://",
        );
    }

    fn proofs(&self, warn: &mut impl FnMut(bool, &str)) {
        let auth = &self.auth;
        let tokens = auth.jwt != Jwt::Off;
        let passwords = self.accepts(Source::Password) || self.accepts(Source::Basic);
        let certificates = self.accepts(Source::Certificate) && self.tls.client_auth.is_some();
        warn(
            tokens && auth.issuer.is_none(),
            "auth.issuer is not set: tokens of every issuer are accepted whose keys are in the key set; set it",
        );
        warn(
            tokens && auth.audience.is_empty(),
            "auth.audience is empty: tokens that were made for other services are accepted; set it",
        );
        warn(
            tokens && auth.leeway > LEEWAY_MAX,
            "auth.leeway is long: tokens are good for that time after their end; 5s is enough where clocks are set by NTP",
        );
        let kinds = [tokens, passwords, certificates].iter().filter(|on| **on).count();
        let unproven = |rule: &Rule| {
            rule.effect == Effect::Allow && !rule.users.is_empty() && rule.proof.is_empty() && rule.claims.is_empty()
        };
        warn(
            kinds > 1 && self.rules.iter().any(unproven),
            "rules name users without proof, and users come in by several: a user bob with a password and one with a token are one to \
             such a rule; add proof = [\"token\"] or whichever is meant",
        );
        warn(
            auth.recheck > RECHECK_MAX,
            "auth.recheck is long: a user whose password or virtual host was taken away stays for that time; 60s is the default",
        );
        let guest = |login: &Option<String>| login.as_deref() == Some("guest");
        warn(
            (guest(&auth.service_login) || guest(&auth.default_login)) && self.is_public(),
            "guest works for clients from elsewhere (auth.service_login or auth.default_login): RabbitMQ's well-known administrator; \
             make a user with the permissions that are needed",
        );
        warn(
            !auth.loopback_users.iter().any(|user| user == "guest") && passwords && self.is_public(),
            "auth.loopback_users does not name guest: RabbitMQ's well-known user may come in from everywhere; name it, or remove \
             the user at RabbitMQ and ignore this",
        );
        warn(
            auth.default_login.is_some() && self.is_public(),
            "auth.default_login lets everybody in who says nothing; give that user no more than the public may have, or remove it",
        );
    }

    fn service(&self, warn: &mut impl FnMut(bool, &str)) {
        if self.auth.service_login.is_none() {
            return;
        }
        let for_all = |rule: &&Rule| {
            let anybody =
                rule.users.iter().chain(&rule.certificates).chain(rule.claims.values()).all(|text| text == "*");
            rule.effect == Effect::Allow && anybody
        };
        let everything = |rule: Rule| rule.send.iter().chain(&rule.subscribe).any(|pattern| pattern.as_str() == "**");
        warn(
            self.rules.iter().filter(for_all).cloned().any(everything),
            "a rule allows ** to everybody, with a service account: each client may do what the account may; name destinations, or \
             whom the rule is for",
        );
        let headers = |rule: &Rule| rule.headers.iter().flatten().any(|header| header == "*");
        warn(
            self.rules.iter().filter(for_all).any(headers),
            "a rule allows all headers to everybody, with a service account: clients name queues and routes for each other; list \
             the headers that are needed",
        );
        warn(
            self.log.audit_file.is_none(),
            "log.audit_file is not set, with a service account: RabbitMQ sees that account only, so nothing tells who did what; set \
             it",
        );
    }

    fn bounds(&self, warn: &mut impl FnMut(bool, &str)) {
        if !self.is_public() {
            return;
        }
        let (auth, limits) = (&self.auth, &self.limits);
        warn(
            auth.failures_per_address_max > FAILURES_MAX || auth.failures_per_user_max > FAILURES_MAX,
            "auth.failures_per_address_max or auth.failures_per_user_max is large: passwords can be guessed; 20 and 10 are the defaults",
        );
        warn(
            auth.failure_delay.is_zero(),
            "auth.failure_delay is 0: the time of an answer tells whether a user exists; 300ms is the default",
        );
        warn(
            auth.failure_window < FAILURE_WINDOW_MIN,
            "auth.failure_window is short: passwords can be guessed at auth.failures_per_address_max in each; 60s is the default",
        );
        warn(
            auth.attempts_max > ATTEMPTS_MAX && self.stomp.compatibility == Compatibility::Rabbitmq,
            "auth.attempts_max is large: one connection may guess that often; 3 is the default",
        );
        warn(
            limits.strangers_max >= limits.connections_max,
            "limits.strangers_max is not below limits.connections_max: clients that never log in can take every place; lower it",
        );
        warn(
            limits.stranger_timeout > STRANGER_TIMEOUT_MAX,
            "limits.stranger_timeout is long: clients that never log in keep their places for that time; 30s is the default",
        );
        warn(
            limits.network_ipv4_bits < NETWORK_BITS_MIN.0 || limits.network_ipv6_bits < NETWORK_BITS_MIN.1,
            "limits.network_ipv4_bits or limits.network_ipv6_bits is small: most clients count as one network, and one can keep the others \
             out; 24 and 48 are the defaults",
        );
        warn(
            limits.memory_max.zip(limits.session_bytes_max).is_some_and(|(all, one)| one >= all),
            "limits.session_bytes_max is not below limits.memory_max: one session can take all memory; lower it",
        );
        let rates = [
            limits.handshake_rate_max,
            limits.handshake_rate_per_address_max,
            limits.connect_rate_max,
            limits.connect_rate_per_address_max,
        ];
        warn(
            rates.contains(&0),
            "a rate in limits is 0, which is no limit: one client can keep all others out; leave the key out for its default",
        );
        warn(
            limits.connections_per_address_max >= limits.connections_max,
            "limits.connections_per_address_max is not below limits.connections_max: one address can take every place; lower it",
        );
    }
}

/// Pages of everybody: any, those without an origin, those of files, and all names of a top-level domain.
fn admits_strangers(origin: &OriginPattern) -> bool {
    let of_domain = origin.host().is_some_and(|(host, below)| below && is_top_level(&host));
    origin.admits_anybody() || origin.is_of_files() || of_domain
}

fn fits_strangers(host: &HostPattern) -> bool {
    match host {
        HostPattern::Any => true,
        HostPattern::Below(name) => is_top_level(name),
        HostPattern::Exact(_) => false,
    }
}

/// A label of the internet's, below which everybody may have a name.
fn is_top_level(name: &str) -> bool {
    !name.contains('.') && !INNER_NAMES.contains(&name)
}

/// A list of many networks can be what none of them is.
fn is_wide_in_all(networks: &[IpNet]) -> bool {
    let outer = IpNet::aggregate(&networks.iter().copied().filter(|network| !is_inner(network.addr())).collect());
    let sizes = outer.iter().filter(|network| network.addr().is_ipv4());
    sizes.map(|network| 1u64 << (32 - network.prefix_len())).sum::<u64>() > 1 << (32 - PREFIX_MIN.0)
}

fn is_wide(network: &IpNet) -> bool {
    let shortest = if network.addr().is_ipv4() { PREFIX_MIN.0 } else { PREFIX_MIN.1 };
    network.prefix_len() < shortest && !is_inner(network.addr())
}

/// Of this machine or of a network of one's own; the address that stands for all is neither.
fn is_inner(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// A name without a dot is one of the machine's own network. A port behind it does not matter.
fn is_inner_host(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(name, _)| !name.contains(':')).map_or(host, |(name, _)| name);
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return is_inner(address);
    }
    let ends = |ending: &&str| name.strip_suffix(*ending).is_some_and(|rest| rest.ends_with('.'));
    !name.contains('.') || INNER_NAMES.iter().any(ends)
}
