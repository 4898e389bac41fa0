//! What a reload must not take away by leaving it out. A file that was emptied, cut or overwritten by a tool says less than the one
//! before, and nothing of what was meant: so a defence that was configured ends only where the new configuration says so.
//!
//! Judges only what is left out. What is written, however little it protects, is somebody's will; `warnings` has a word about it.

use super::Config;

/// A key, and the value that it has as text.
type Defence = (&'static str, fn(&Config) -> String);

macro_rules! defences {
    ($($section:ident . $key:ident),+ $(,)?) => {
        [$((concat!(stringify!($section), ".", stringify!($key)), |config: &Config| format!("{:?}", config.$section.$key))),+]
    };
}

/// Keys whose defaults let in more, look less closely or trust others. What can only become stricter is not among them, nor what
/// needs a restart.
const DEFENCES: [Defence; 54] = defences![
    tls.min_version,
    tls.client_auth,
    tls.client_ca_file,
    tls.client_crl_file,
    tls.client_name,
    broker.uris,
    broker.ca_file,
    broker.vhost,
    broker.vhosts,
    broker.ignore_host,
    auth.sources,
    auth.cookie_origins,
    auth.jwt,
    auth.service_login,
    auth.keys_file,
    auth.jwks_url,
    auth.jwks_ca_file,
    auth.issuer,
    auth.audience,
    auth.algorithms,
    auth.user_claims,
    auth.leeway,
    auth.user_case,
    auth.loopback_users,
    auth.failure_delay,
    auth.failures_per_address_max,
    auth.failures_per_user_max,
    auth.failure_window,
    auth.attempts_max,
    http.origins,
    http.hosts,
    admin.hosts,
    http.hsts,
    proxy.trusted,
    proxy.header,
    proxy.protocol_from,
    log.audit_failure,
    limits.connections_max,
    limits.connections_per_address_max,
    limits.connections_per_user_max,
    limits.connections_per_network_max,
    limits.memory_max,
    limits.session_bytes_max,
    limits.user_bytes_max,
    limits.strangers_max,
    limits.stranger_timeout,
    limits.handshake_rate_max,
    limits.handshake_rate_per_address_max,
    limits.connect_rate_max,
    limits.connect_rate_per_address_max,
    session.send_rate_max,
    session.subscriptions_max,
    stomp.frame_bytes_max,
    stomp.login_frame_bytes_max,
];

impl Config {
    /// A text for people about each defence that was configured here and that `new` leaves out, so that its default would hold.
    pub fn defences_left_out(&self, new: &Config) -> Vec<String> {
        let mut left_out = Vec::new();
        if !self.rules.is_empty() && new.rules.is_empty() && !new.was_set.has("rules") {
            left_out.push(
                "rules: there are none any more; write rules = [] at the top of the file if that is meant".to_owned(),
            );
        }
        let lost =
            |(key, value): &&Defence| value(self) != value(new) && self.was_set.has(key) && !new.was_set.has(key);
        if self.was_set.is_continued_in(&new.was_set) {
            left_out.push(
                "the file ends where it went on before, as one that was cut does; if that is meant, write a comment at its end"
                    .to_owned(),
            );
        }
        left_out.extend(self.was_set.rules_cut_short(&new.was_set).into_iter().map(|(rule, keys)| {
            format!(
                "rule {rule} is as before but for {keys}; write what holds now, as in users = [\"*\"], if that is meant"
            )
        }));
        for (key, _) in DEFENCES.iter().filter(lost) {
            left_out.push(format!("{key}: is set no more; write its default if that is meant"));
        }
        left_out
    }
}
