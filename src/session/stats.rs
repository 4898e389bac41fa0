//! What a session counts: plain numbers, read by whoever logs and measures.

/// Totals of a session, for its closing log line and the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub frames_received: u64,
    pub frames_sent: u64,
    /// ACKs and NACKs of deliveries that were lost with their lease.
    pub late_acks: u64,
    pub messages_confirmed: u64,
    pub messages_delivered: u64,
    /// Of shared subscriptions, by `drop_oldest`.
    pub messages_dropped: u64,
    pub messages_published: u64,
    pub messages_rejected: u64,
    /// Published again after the lease was lost.
    pub messages_repeated: u64,
    pub suspensions: u64,
    /// Times the client was not read because it sent too fast.
    pub throttles: u64,
}
