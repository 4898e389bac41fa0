//! Settings of relays that accept tokens of the tests' issuer.

use super::issuer::{AUDIENCE, ISSUER};
use super::key_server::KeyServer;

/// The `[auth]` section with further lines; guest is the service account, and a rule allows everything.
pub fn relay_with(lines: &str) -> String {
    format!(
        "[[rules]]\nsend = [\"**\"]\nsubscribe = [\"**\"]\n[auth]\njwt = \"relay\"\nservice_login = \"guest\"\nservice_passcode = \"guest\"\naudience = [\"{AUDIENCE}\"]\n\
         issuer = \"{ISSUER}\"\n{lines}"
    )
}

pub fn relay(server: &KeyServer) -> String {
    relay_with(&format!("jwks_url = \"{}\"\n", server.url()))
}

/// Tokens go to RabbitMQ.
pub fn broker(server: &KeyServer) -> String {
    format!(
        "[auth]\njwt = \"broker\"\naudience = [\"{AUDIENCE}\"]\nissuer = \"{ISSUER}\"\njwks_url = \"{}\"\n",
        server.url()
    )
}
