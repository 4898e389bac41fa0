//! The actions that wait for their turn, in order, and what they hold. Owns no limit: while one waits, no frame is read.

use std::collections::VecDeque;

use super::transaction::Action;

/// Room that is kept when nothing waits; what a COMMIT took beyond it is given back.
const ACTIONS_KEPT: usize = 4;

/// At most one frame, the actions of one COMMIT, or what goes out again after an outage.
#[derive(Debug, Default)]
pub(super) struct Actions {
    bytes: usize,
    queue: VecDeque<Action>,
}

impl Actions {
    pub(super) fn push_back(&mut self, action: Action) {
        self.bytes += action.bytes();
        self.queue.push_back(action);
    }

    pub(super) fn push_front(&mut self, action: Action) {
        self.bytes += action.bytes();
        self.queue.push_front(action);
    }

    pub(super) fn pop_front(&mut self) -> Option<Action> {
        let action = self.queue.pop_front()?;
        self.bytes -= action.bytes();
        if self.queue.is_empty() && self.queue.capacity() > ACTIONS_KEPT {
            self.queue = VecDeque::new();
        }
        Some(action)
    }

    pub(super) fn front(&self) -> Option<&Action> {
        self.queue.front()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Action> {
        self.queue.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
