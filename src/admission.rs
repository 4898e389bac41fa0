//! One login: what the client shows goes to the authenticator, and what that makes of it to RabbitMQ.

use std::sync::Arc;

use crate::auth::{Admission, Authenticator};
use crate::broker::{Broker, Channel, ClientLabel};
use crate::session::identity::Identity;
use crate::session::io::LoggedIn;
use crate::session::proof::{Denial, Evidence, ProofFailure, Token};

/// What a login needs of the relay.
#[derive(Clone)]
pub struct Gate {
    pub auth: Arc<Authenticator>,
    pub broker: Broker,
    pub label: ClientLabel,
}

impl Gate {
    /// # Errors
    /// See [`Denial`].
    pub async fn log_in(self, virtual_host: String, evidence: Evidence) -> Result<(Channel, LoggedIn), Denial> {
        let Gate { auth, broker, label } = self;
        let Admission { credentials, identity, .. } = auth.admit(&evidence, &label.0).await?;
        let (lease, broker) = broker.login(&virtual_host, &credentials, &label).await?;
        Ok((lease, LoggedIn { broker, identity }))
    }

    /// Another token for a session of `user`.
    ///
    /// # Errors
    /// See [`ProofFailure`].
    pub async fn refresh(self, token: Token, user: String) -> Result<Identity, ProofFailure> {
        let Gate { auth, label, .. } = self;
        let Admission { identity, .. } = auth.renew(&token, &user, &label.0).await?;
        Ok(identity)
    }
}
