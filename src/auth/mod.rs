//! Who a client is: the proofs that it shows are checked here, by us or with what an identity provider publishes.
//!
//! An adapter to the world of tokens: knows JSON web tokens, key sets and where they come from. Knows nothing of STOMP frames,
//! HTTP requests or AMQP; what a login may do afterwards is decided elsewhere. Keeps and logs no token.

mod attempts;
mod authenticator;
mod claims;
mod fetch;
mod key;
mod key_source;
mod token;

pub use attempts::{Attempt, AttemptLimits, Attempts, Limited};
pub use authenticator::{Admitted, AuthConfig, Authenticator, Keys, Links, TokenConfig, Upstream};
pub use fetch::DocumentUrl;
pub use key::{KEY_SET_BYTES_MAX, KEYS_MAX, KeySet, Symmetric};
pub use key_source::{KeySource, KeySourceConfig, Origin, discovery_url};
pub use token::{Rules, TokenError, Verified, verify};

pub use jsonwebtoken::Algorithm;
