//! Closing a channel of a link that others are on.
//!
//! lapin treats any error of a background close as an error of the whole connection, and a close that crosses a channel
//! exception is such an error. Hence the barrier: a synchronous method first; `channel.close` only if it was answered;
//! otherwise the channel is dead already and is just dropped.

use super::fault::{Fault, within};
use super::link::Link;
use lapin::options::BasicQosOptions;
use std::sync::Arc;

/// Whether the channel could be closed properly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    Closed,
    /// The broker or the link had ended it before.
    Dead,
    /// No answer in time.
    Silent,
}

/// See the head of this file.
pub(super) async fn barrier_close(raw: &lapin::Channel, link: &Arc<Link>) -> Closing {
    match barrier(raw, link).await {
        Closing::Closed => close(raw, link).await,
        ended => ended,
    }
}

/// Whether everything before it has arrived at RabbitMQ's channel.
pub(super) async fn barrier(raw: &lapin::Channel, link: &Arc<Link>) -> Closing {
    let qos = raw.basic_qos(1, BasicQosOptions { global: false });
    judge(within(link.config.operation_timeout, "channel barrier", qos).await, link)
}

pub(super) async fn close(raw: &lapin::Channel, link: &Arc<Link>) -> Closing {
    judge(within(link.config.operation_timeout, "channel close", raw.close(200, "OK".into())).await, link)
}

pub(super) fn judge(result: Result<(), Fault>, link: &Link) -> Closing {
    match result {
        Ok(()) => Closing::Closed,
        Err(Fault::Lapin(_)) => Closing::Dead,
        Err(fault @ Fault::TimedOut(_)) => {
            link.failure(fault, None);
            Closing::Silent
        }
    }
}
