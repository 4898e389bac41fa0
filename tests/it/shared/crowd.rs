//! Many who subscribe at the same time, each to a topic of its own: their queues are made side by side.

use super::{KEY, Place, join, next, number, publish, refused, subscribe_as};
use futures_util::future::{FusedFuture, FutureExt, join_all};
use stomp_relay::session::command::Overflow;
use stomp_relay::session::event::BrokerEvent;

/// What a session may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Binding,
    Reading,
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_within_a_crowd_harm_nobody_else() {
    let place = Place::with("^(amq[.]topic|good.*)$", 1 << 20);
    place.rabbit.ctl(&["set_topic_permissions", "-p", &place.name, &place.name, "amq.topic", ".*", "^allowed"]);
    let faults = [None, Some(Fault::Binding), None, None, Some(Fault::Reading)];
    let crowd = place.leases(60).await.into_iter().zip(faults.into_iter().cycle()).enumerate();
    let served = join_all(crowd.map(async |(at, (mut channel, fault))| {
        let topic = if fault == Some(Fault::Binding) { "forbidden" } else { "allowed" };
        let name = if fault == Some(Fault::Reading) { "bad" } else { "good" };
        let (topic, queue) = (format!("{topic}.{at}"), format!("{name}-{at}"));
        channel.execute(subscribe_as(KEY, &topic, Overflow::Disconnect, &queue));
        match fault {
            None => {
                let subscribed = next(&mut channel).await;
                assert!(matches!(subscribed, BrokerEvent::Subscribed { .. }), "{topic}: {subscribed:?}");
                return Some((at as u64, topic, channel));
            }
            Some(Fault::Binding) => refused(&mut channel, &format!("access to topic '{topic}'")).await,
            Some(Fault::Reading) => refused(&mut channel, &format!("access to queue '{queue}'")).await,
        }
        None
    }));
    let mut served = served.await.into_iter().flatten().collect::<Vec<_>>();
    assert_eq!((served.len(), place.queues(), place.consumers()), (36, 36, 36));
    // One that consumes, and eight beside it.
    assert!(place.channels() <= 9, "{}", place.channels());
    let mut publisher = place.lease().await;
    for (at, topic, channel) in &mut served {
        publish(&mut publisher, topic, *at).await;
        assert_eq!(number(channel).await, *at);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_channel_that_is_lost_while_a_crowd_subscribes_costs_nobody_anything() {
    let place = Place::new();
    let (mut crowd, closing) = (
        Vec::new(),
        std::pin::pin!(async {
            for _ in 0..2 {
                place.close_consuming_channels().await;
            }
        }),
    );
    let mut closing = closing.fuse();
    while !closing.is_terminated() {
        let comers = place.leases(25).await.into_iter().enumerate();
        let before = crowd.len();
        let subscribing = join_all(comers.map(async |(at, mut channel)| {
            join(&mut channel, KEY, &format!("t.{}", before + at)).await;
            channel
        }));
        let mut subscribing = std::pin::pin!(subscribing.fuse());
        crowd.extend(loop {
            tokio::select! {
                subscribed = &mut subscribing => break subscribed,
                () = &mut closing, if !closing.is_terminated() => {}
            }
        });
    }
    assert_eq!((place.queues(), place.consumers()), (crowd.len(), crowd.len()));
    let mut publisher = place.lease().await;
    for (at, channel) in crowd.iter_mut().enumerate() {
        publish(&mut publisher, &format!("t.{at}"), at as u64).await;
        assert_eq!(number(channel).await, at as u64);
    }
}
