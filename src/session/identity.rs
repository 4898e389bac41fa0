//! Who a client is, once that is verified: the name, and what a token or a certificate says besides. Where it comes from, and
//! how it is verified, is decided outside the session.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

#[derive(Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// RabbitMQ's user where RabbitMQ checks the login, else the name that the token or certificate gives.
    pub user: String,
    /// What a token says that is a text or a list of texts, by name; `a.b` is `b` in the object `a`.
    pub claims: BTreeMap<String, Vec<String>>,
    /// Common name of the client's certificate.
    pub certificate_name: Option<String>,
    /// The session ends then, unless the identity is renewed before. For a token, some moment between its end and that of the
    /// leeway.
    pub expires_at: Option<Instant>,
}

impl Identity {
    /// A user that RabbitMQ has checked.
    pub fn of_login(user: &str) -> Identity {
        Identity { user: user.to_owned(), ..Identity::default() }
    }
}

/// Without the claims: they are about a person.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("user", &self.user)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
