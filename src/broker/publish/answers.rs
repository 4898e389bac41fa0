//! What comes back for publishes: confirms, refusals and returns, and what they come to. What is written is its parent's.

use super::{Meta, PublishSide, Unconfirmed};
use crate::broker::consume::Ending;
use crate::broker::fault::Fault;
use crate::broker::inquiry::{Inquiry, Whereabouts};
use crate::broker::link::Leased;
use crate::broker::proving::Trial;
use crate::session::amqp::ShortText;
use crate::session::command::{Publish, PublishToken};
use crate::session::event::{BrokerEvent, Concern, Failure};
use futures_util::FutureExt;
use lapin::Confirmation;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// Between two questions of a session about queues that refused its publishes: each may cost a channel.
const INQUIRY_PAUSE: Duration = Duration::from_secs(1);

/// A publish that was refused, maybe only because its queue is away.
pub(super) struct Doubt {
    inquiry: Inquiry,
    meta: Meta,
    /// Whether it is tried again in any case, and its queue only asked whether it has a leader.
    trial: bool,
    verdict: BrokerEvent,
}

impl PublishSide {
    pub(super) fn poll_confirm(&mut self, cx: &mut Context<'_>) -> Poll<Result<BrokerEvent, Failure>> {
        if self.doubt.is_some() {
            return self.poll_doubt(cx);
        }
        let (Some(channel), Some(first)) = (&self.channel, self.unconfirmed.front_mut()) else { return Poll::Pending };
        let confirmation = match ready!(first.confirm.poll_unpin(cx)) {
            Ok(confirmation) => confirmation,
            Err(error) => {
                return Poll::Ready(Err(channel.link.failure(Fault::Lapin(error), channel.refusal())));
            }
        };
        let event = answer(channel, &first.meta, &confirmation);
        let link = channel.link.clone();
        let Some(Unconfirmed { meta, .. }) = self.unconfirmed.pop_front() else { return Poll::Pending };
        let publish = &meta.publish;
        if !matches!(event, BrokerEvent::Rejected { .. }) {
            self.proving.judged(publish);
        } else {
            match self.proving.tries_again(publish, Instant::now()) {
                Trial::Over => {}
                Trial::Again => {
                    self.try_again(meta.publish);
                    return Poll::Pending;
                }
                Trial::Ask => {
                    let inquiry = Inquiry::begin(link, publish.message.routing_key.clone());
                    self.doubt = Some(Box::new(Doubt { inquiry, meta, trial: true, verdict: event }));
                    return self.poll_doubt(cx);
                }
            }
        }
        if is_refusal(&event) && self.may_inquire(publish) {
            self.inquired_at = Some(Instant::now());
            let inquiry = Inquiry::begin(link, publish.message.routing_key.clone());
            self.doubt = Some(Box::new(Doubt { inquiry, meta, trial: false, verdict: event }));
            return self.poll_doubt(cx);
        }
        Poll::Ready(Ok(event))
    }

    /// It went alone, so it is the next one again and there is no further confirm to wait for.
    ///
    /// It goes over another channel: RabbitMQ's channel goes on asking the node on which it looked for the queue's leader first,
    /// and refuses as long as that node is away, whoever leads meanwhile (`rabbit_fifo_client:enqueue`).
    fn try_again(&mut self, publish: Publish) {
        self.entry.counts().publishes_retried.fetch_add(1, Ordering::Relaxed);
        self.queue.push_front(publish);
        self.give_back_channel();
    }

    /// Whether RabbitMQ is asked about the queue of a refused publish.
    fn may_inquire(&self, publish: &Publish) -> bool {
        let recently = self.inquired_at.is_some_and(|at| at.elapsed() < INQUIRY_PAUSE);
        publish.message.exchange.is_empty() && publish.repeatable && !recently
    }

    /// What comes of a refusal: a queue that is away ends the lease, and the publish is repeated on another one.
    fn poll_doubt(&mut self, cx: &mut Context<'_>) -> Poll<Result<BrokerEvent, Failure>> {
        let Some(doubt) = &mut self.doubt else { return Poll::Pending };
        let whereabouts = ready!(doubt.inquiry.poll(cx));
        let Some(Doubt { meta, trial, verdict, .. }) = self.doubt.take().map(|doubt| *doubt) else {
            return Poll::Pending;
        };
        if trial {
            if whereabouts == Whereabouts::Led {
                self.proving.is_led();
            }
            self.try_again(meta.publish);
            return Poll::Pending;
        }
        match (whereabouts, verdict) {
            (Whereabouts::Away(failure), _) => {
                self.failed = Some(meta);
                Poll::Ready(Err(failure))
            }
            // It was not there, and is again.
            (Whereabouts::Led | Whereabouts::There, BrokerEvent::Returned { .. }) => {
                self.queue.push_front(meta.publish);
                self.poll_confirm(cx)
            }
            (Whereabouts::Led | Whereabouts::There | Whereabouts::Missing, verdict) => Poll::Ready(Ok(verdict)),
        }
    }

    /// Takes the answers that came before the failure, then says whom it concerns.
    pub(super) fn end(&mut self, cx: &mut Context<'_>, ready: &mut VecDeque<BrokerEvent>, failure: Failure) -> Ending {
        while let Poll::Ready(Ok(event)) = self.poll_confirm(cx) {
            if failure.is_absence() && is_refusal(&event) {
                // It is repeated too.
                break;
            }
            ready.push_back(event);
        }
        let concern = match &failure {
            // One of its own channel's; what was in doubt is the oldest.
            Failure::Refused { .. } if failure.is_absence() => self.failed.as_ref().map(|meta| meta.publish.token),
            Failure::Refused { reply_text, .. } => self.culprit(reply_text),
            Failure::BehindEnd { .. }
            | Failure::LinkLost { .. }
            | Failure::Poisoned { .. }
            | Failure::TimedOut { .. }
            | Failure::Unconfirmed => None,
        };
        (failure, concern.map_or(Concern::Session, Concern::Publish))
    }

    /// Which publish a refusal names. RabbitMQ quotes the exchange (`no exchange 'x' in vhost '/'`) and, for topic
    /// permissions, the routing key as well; other texts name neither, then it is the oldest.
    fn culprit(&self, text: &str) -> Option<PublishToken> {
        let named = |name: &ShortText| !name.is_empty() && text.contains(&format!("'{name}'"));
        let exchange = |publish: &Publish| named(&publish.message.exchange);
        let routing_key = |publish: &Publish| named(&publish.message.routing_key);
        let written = self.unconfirmed.iter().map(|unconfirmed| &unconfirmed.meta);
        let metas = written.chain(&self.failed).chain(self.writing.iter().map(|writing| &writing.meta));
        let mut candidates = metas.map(|meta| &meta.publish).collect::<Vec<_>>();
        if candidates.is_empty() {
            // Refused before it was written.
            candidates.extend(self.queue.front());
        }
        let find = |fits: &dyn Fn(&Publish) -> bool| candidates.iter().find(|publish| fits(publish));
        let culprit = find(&|publish| exchange(publish) && routing_key(publish))
            .or_else(|| find(&exchange))
            .or_else(|| find(&routing_key))
            .or_else(|| candidates.first());
        culprit.map(|publish| publish.token)
    }
}

fn is_refusal(event: &BrokerEvent) -> bool {
    matches!(event, BrokerEvent::Rejected { .. } | BrokerEvent::Returned { .. })
}

fn answer(channel: &Leased, meta: &Meta, confirmation: &Confirmation) -> BrokerEvent {
    let Publish { message, token, .. } = &meta.publish;
    let token = *token;
    let returned = message.mandatory.then_some(&message.properties.message_id).and_then(|id| {
        let id = id.as_ref().map(ShortText::as_str);
        channel.link.wire.take_return(channel.raw.id(), id, message.exchange.as_str(), message.routing_key.as_str())
    });
    match (confirmation, returned) {
        (Confirmation::Nack(_), _) => BrokerEvent::Rejected { token },
        (_, Some(returned)) => BrokerEvent::Returned {
            token,
            reply_code: returned.cause.reply_code,
            reply_text: returned.cause.reply_text,
        },
        (_, None) => BrokerEvent::Confirmed { token },
    }
}
