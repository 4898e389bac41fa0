//! Who may do what: patterns, client, frame, verdict. Injections among them.

use stomp_relay::session::rules::{Effect, RuleSet, Stance};

use super::{allow, allowed, who};

const YES: bool = true;
const NO: bool = false;

/// Patterns of one rule for everybody, with blanks between.
const ONE_RULE: &[(&str, &str, &str, bool)] = &[
    // Names of queues, whatever way they are written.
    ("/queue/jobs", "alice", "SEND /queue/jobs", YES),
    ("/queue/jobs", "alice", "SEND jobs", YES),
    ("/queue/jobs", "alice", "SEND /amq/queue/jobs", YES),
    ("/queue/jobs", "alice", "SEND /reply-queue/jobs", YES),
    ("/amq/queue/jobs", "alice", "SUBSCRIBE /queue/jobs", YES),
    ("/reply-queue/jobs", "alice", "SUBSCRIBE /amq/queue/jobs", YES),
    ("/queue/jobs", "alice", "SEND /queue/jobs2", NO),
    ("/queue/jobs", "alice", "SEND /queue/job", NO),
    ("/queue/jobs", "alice", "SEND /queue/Jobs", NO),
    ("/queue/jobs", "alice", "SEND /topic/jobs", NO),
    ("/queue/jobs", "alice", "SEND /exchange/jobs", NO),
    ("/queue/jobs", "alice", "SEND /exchange//jobs", NO),
    ("/queue/jobs", "alice", "SEND /queue/jobs%2Fx", NO),
    ("/queue/jobs%2Fx", "alice", "SEND /queue/jobs%2Fx", YES),
    ("/queue/jobs%2Fx", "alice", "SEND /reply-queue/jobs/x", YES),
    ("/queue/jobs%2Fx", "alice", "SEND /reply-queue/jobs%2Fx", YES),
    // `*` is within a part, `**` is the rest.
    ("/queue/jobs.*", "alice", "SEND /queue/jobs.a", YES),
    ("/queue/jobs.*", "alice", "SEND /queue/jobs.a.b", NO),
    ("/queue/jobs.*", "alice", "SEND /queue/jobs", NO),
    ("/queue/jobs.**", "alice", "SEND /queue/jobs", YES),
    ("/queue/jobs.**", "alice", "SEND /queue/jobs.a.b", YES),
    ("/queue/jobs.**", "alice", "SEND /queue/jobsx", NO),
    ("/queue/in-*", "alice", "SEND /queue/in-acme", YES),
    ("/queue/in-*", "alice", "SEND /queue/in-acme.x", NO),
    ("/queue/%2A", "alice", "SEND /queue/a", NO),
    ("/queue/%2A", "alice", "SEND /queue/*", YES),
    ("**", "alice", "SEND /exchange/any/thing", YES),
    // Wildcards in the name of a queue are characters.
    ("/queue/jobs.*", "alice", "SUBSCRIBE /queue/jobs.#", YES),
    ("/queue/jobs.a", "alice", "SUBSCRIBE /queue/jobs.*", NO),
    // Queues that were named for one session.
    ("/queue/**", "alice", "SUBSCRIBE /queue/stomp-subscription-abc", NO),
    ("/queue/*", "alice", "SUBSCRIBE /amq/queue/stomp-subscription-abc", NO),
    ("/queue/**", "alice", "SUBSCRIBE /amq/queue/amq.gen-abc", NO),
    ("/reply-queue/**", "alice", "SEND /reply-queue/stomp-subscription-abc", NO),
    ("/reply-queue/stomp-subscription-*", "alice", "SEND /reply-queue/stomp-subscription-abc", YES),
    ("/queue/amq.gen-*", "alice", "SEND /amq/queue/amq.gen-abc", YES),
    // Topics and exchanges.
    ("/topic/quotes.*", "alice", "SEND /topic/quotes.eu", YES),
    ("/topic/quotes.*", "alice", "SEND /exchange/amq.topic/quotes.eu", YES),
    ("/exchange/amq.topic/quotes.*", "alice", "SEND /topic/quotes.eu", YES),
    ("/exchange/amq.topic/quotes.*", "alice", "SEND /topic/other.eu", NO),
    ("/topic/quotes.*", "alice", "SEND /exchange/other/quotes.eu", NO),
    ("/exchange/orders", "alice", "SEND /exchange/orders", YES),
    ("/exchange/orders", "alice", "SEND /exchange/orders/x", NO),
    ("/exchange/orders/**", "alice", "SEND /exchange/orders", YES),
    ("/exchange/**", "alice", "SEND /topic/x", YES),
    ("/exchange/**", "alice", "SEND /queue/x", NO),
    ("/topic/**", "alice", "SEND /exchange/amq.direct/x", NO),
    ("/topic/a.**", "alice", "SEND /topic/a%2F..%2Fb", NO),
    // A subscription must be covered as a whole.
    ("/topic/quotes.*", "alice", "SUBSCRIBE /topic/quotes.eu", YES),
    ("/topic/quotes.*", "alice", "SUBSCRIBE /topic/quotes.*", YES),
    ("/topic/quotes.*", "alice", "SUBSCRIBE /topic/quotes.#", NO),
    ("/topic/quotes.*", "alice", "SUBSCRIBE /topic/#", NO),
    ("/topic/quotes.*", "alice", "SUBSCRIBE /topic/*.eu", NO),
    ("/topic/quotes.*", "alice", "SUBSCRIBE /topic/#.quotes.eu", NO),
    ("/topic/quotes.*", "alice", "SUBSCRIBE /exchange/amq.topic/#", NO),
    ("/topic/quotes.e*", "alice", "SUBSCRIBE /topic/quotes.*", NO),
    ("/topic/quotes.**", "alice", "SUBSCRIBE /topic/quotes.#", YES),
    ("/topic/quotes.**", "alice", "SUBSCRIBE /topic/quotes.*.#.x", YES),
    ("/topic/quotes.*.**", "alice", "SUBSCRIBE /topic/quotes.#", NO),
    ("/topic/quotes.*.**", "alice", "SUBSCRIBE /topic/quotes.#.x", YES),
    ("/topic/**", "alice", "SUBSCRIBE /topic/#", YES),
    ("/exchange/logs", "alice", "SUBSCRIBE /exchange/logs/#", NO),
    // Headers that name something.
    ("/topic/a", "alice", "SEND /topic/a CC:b", NO),
    ("/topic/a /topic/b", "alice", "SEND /topic/a CC:b", YES),
    ("/topic/a /topic/b", "alice", "SEND /topic/a BCC:b,c", NO),
    ("/queue/a", "alice", "SEND /queue/a CC:b", NO),
    ("/queue/a", "alice", "SUBSCRIBE /queue/a x-dead-letter-exchange:amq.topic", NO),
    ("/queue/a /topic/**", "alice", "SUBSCRIBE /queue/a x-dead-letter-exchange:amq.topic", YES),
    ("/queue/a /topic/b", "alice", "SUBSCRIBE /queue/a x-dead-letter-exchange:amq.topic", NO),
    ("/queue/a /topic/b", "alice", "SEND /queue/a x-dead-letter-exchange:amq.topic x-dead-letter-routing-key:b", YES),
    ("/queue/**", "alice", "SEND /queue/a x-dead-letter-exchange:", NO),
    ("/queue/**", "alice", "SEND /queue/a x-dead-letter-exchange: x-dead-letter-routing-key:b", YES),
    ("/topic/a", "alice", "SUBSCRIBE /topic/a x-queue-name:victim", NO),
    ("/topic/a /queue/mine", "alice", "SUBSCRIBE /topic/a x-queue-name:mine", YES),
    // Neither names a binding, so nothing goes into the queue.
    ("/queue/a /queue/b", "alice", "SUBSCRIBE /queue/a x-queue-name:b", YES),
    // Placeholders.
    ("/queue/in-{username}", "alice", "SEND /queue/in-alice", YES),
    ("/queue/in-{username}", "alice", "SEND /queue/in-bob", NO),
    ("/queue/{username}-in", "alice", "SEND /queue/alice-in", YES),
    ("/queue/{vhost}", "alice vhost=shop", "SEND /queue/shop", YES),
    ("/queue/{vhost}", "alice", "SEND /queue/%2F", NO),
    ("/queue/{cert.cn}", "alice cert=dev-1", "SEND /queue/dev-1", YES),
    ("/queue/{cert.cn}", "alice", "SEND /queue/dev-1", NO),
    ("/queue/{cert.cn}", "alice", "SEND /queue/{cert.cn}", NO),
    ("/queue/{claim.org}", "alice org=acme", "SEND /queue/acme", YES),
    ("/queue/{claim.org}", "alice", "SEND /queue/", NO),
    ("/queue/x-{claim.org}", "alice", "SEND /queue/x-", NO),
    ("/queue/x-{claim.org}", "alice org=", "SEND /queue/x-", NO),
    ("/queue/{claim.org}", "alice", "SEND /queue/{claim.org}", NO),
    ("/queue/{claim.org}", "alice org=a org=b org=c", "SEND /queue/b", YES),
    ("/queue/{claim.org}", "alice org=a org=b org=c", "SEND /queue/d", NO),
    ("/queue/{claim.org}.{claim.org}", "alice org=a org=b", "SEND /queue/a.b", NO),
    ("/queue/{claim.org}.{claim.org}", "alice org=a org=b", "SEND /queue/b.b", YES),
    ("/queue/{claim.org}.{claim.dep}", "alice org=a org=b dep=c dep=d", "SEND /queue/b.c", YES),
    ("/queue/{claim.a.b}", "alice a.b=x", "SEND /queue/x", YES),
    ("/topic/{claim.https://idp/org}.*", "alice https://idp/org=acme", "SUBSCRIBE /topic/acme.*", YES),
    ("/exchange/orders/{claim.desk}.{username}", "alice desk=fx", "SEND /exchange/orders/fx.alice", YES),
    ("/exchange/orders/{claim.desk}.{username}", "alice desk=fx", "SEND /exchange/orders/fx.bob", NO),
    ("/exchange/{claim.org}/**", "alice org=orders", "SEND /exchange/orders/x.y", YES),
    // Injections: values that would be more than a piece of one part.
    ("/topic/u.{username}", "*", "SUBSCRIBE /topic/u.*", NO),
    ("/topic/u.{username}", "#", "SUBSCRIBE /topic/u.#", NO),
    ("/topic/u.{username}", "**", "SEND /topic/u.bob", NO),
    ("/topic/u.{username}.**", "bob.secret", "SUBSCRIBE /topic/u.bob.secret.#", NO),
    ("/queue/{claim.org}", "alice org=*", "SEND /queue/bob", NO),
    ("/queue/{claim.org}", "alice org=*", "SEND /queue/*", NO),
    ("/queue/{claim.org}", "alice org=a/b", "SEND /queue/a%2Fb", NO),
    ("/queue/{claim.org}", "alice org=a%2Fb", "SEND /queue/a%2Fb", NO),
    ("/queue/{claim.org}", "alice org=%2A", "SEND /queue/%2A", NO),
    ("/queue/{claim.org}", "alice org={username}", "SEND /queue/alice", NO),
    ("/queue/{claim.org}", "alice org={username}", "SEND /queue/{username}", NO),
    ("/queue/{claim.org}", "alice org=a\u{0}", "SEND /queue/a\u{0}", NO),
    ("/queue/{claim.org}", "alice org=stomp-subscription-x", "SEND /queue/stomp-subscription-x", NO),
    ("/queue/{claim.org}", "alice org=. org=a", "SEND /queue/a", YES),
    ("/exchange/{claim.org}/x", "alice org=amq.topic", "SEND /topic/x", NO),
    ("/topic/{username}.*", "a*", "SUBSCRIBE /topic/abc.*", NO),
];

#[test]
fn one_rule_allows_what_it_says_and_nothing_else() {
    const { assert!(ONE_RULE.len() >= 100) };
    for (patterns, client, frame, expected) in ONE_RULE {
        let patterns: Vec<&str> = patterns.split(' ').collect();
        let rules = RuleSet::new(vec![allow(&patterns)]);
        assert_eq!(allowed(&rules, Stance::Open, &who(client), frame), *expected, "{patterns:?} {client} {frame}");
    }
}

#[test]
fn copies_have_a_limit() {
    let rules = RuleSet::new(vec![allow(&["**"])]);
    for (copies, expected) in [(100, YES), (101, NO)] {
        let keys = vec!["k"; copies - 1].join(",");
        let frame = format!("SEND /topic/a CC:{keys} BCC:k");
        assert_eq!(allowed(&rules, Stance::Open, &who("alice"), &frame), expected, "{copies}");
    }
}

/// What a denying rule takes away from one that allows all.
#[test]
fn a_denying_rule_applies_to_all_that_touches_it() {
    let cases = [
        ("/topic/secret.**", "SUBSCRIBE /topic/secret.a", NO),
        ("/topic/secret.**", "SUBSCRIBE /topic/secret", NO),
        ("/topic/secret.**", "SUBSCRIBE /topic/#", NO),
        ("/topic/secret.**", "SUBSCRIBE /topic/*", NO),
        ("/topic/secret.**", "SUBSCRIBE /topic/*.*.x", NO),
        ("/topic/secret.**", "SUBSCRIBE /topic/#.x", NO),
        ("/topic/secret.**", "SUBSCRIBE /exchange/amq.topic/#", NO),
        ("/topic/secret.**", "SUBSCRIBE /topic/news.#", YES),
        ("/topic/secret.**", "SUBSCRIBE /exchange/other/#", YES),
        ("/topic/secret.*", "SUBSCRIBE /topic/secret", YES),
        ("/topic/secret.*", "SUBSCRIBE /topic/*.*.*", YES),
        ("/topic/secret.*", "SUBSCRIBE /topic/#.a.b.c", YES),
        ("/topic/s*t", "SUBSCRIBE /topic/*", NO),
        ("/queue/secret", "SUBSCRIBE /amq/queue/secret", NO),
        ("/queue/**", "SEND /reply-queue/stomp-subscription-x", NO),
        ("/queue/secret", "SUBSCRIBE /queue/a x-dead-letter-exchange:", NO),
        ("/topic/secret", "SUBSCRIBE /queue/a x-dead-letter-exchange:amq.topic", NO),
        ("/topic/secret", "SEND /topic/a CC:secret", NO),
        ("**", "SEND /topic/a", NO),
    ];
    for (pattern, frame, expected) in cases {
        let mut deny = allow(&[pattern]);
        deny.effect = Effect::Deny;
        let rules = RuleSet::new(vec![deny, allow(&["**"])]);
        assert_eq!(allowed(&rules, Stance::Open, &who("alice"), frame), expected, "not {pattern}: {frame}");
    }
}

#[test]
fn what_a_closed_stance_leaves_open_is_little() {
    let mut generous = allow(&["/queue/**", "/topic/**"]);
    generous.grants.headers = Some(vec!["x-*".to_owned(), "durable".to_owned()]);
    generous.grants.reply_to = Some(allow(&["/queue/answers-{username}"]).send);
    let frames = [
        ("SEND /queue/a", YES, YES),
        ("SEND /queue/a persistent:true", YES, YES),
        ("SEND /queue/a priority:1", YES, YES),
        ("SEND /queue/a durable:false", NO, YES),
        ("SEND /queue/a user-id:bob", NO, NO),
        ("SEND /queue/a x-max-length:1", NO, YES),
        ("SEND /queue/a reply-to:/temp-queue/x", YES, NO),
        ("SEND /queue/a reply-to:/queue/answers-alice", NO, YES),
        ("SEND /queue/a reply-to:answers-alice", NO, YES),
        ("SEND /queue/a reply-to:/reply-queue/answers-bob", NO, NO),
        ("SUBSCRIBE /topic/a persistent:true", NO, NO),
        ("SUBSCRIBE /topic/a exclusive:true", NO, NO),
        ("SUBSCRIBE /topic/a auto-delete:true", NO, NO),
        ("SUBSCRIBE /topic/a durable:true", NO, YES),
        ("SUBSCRIBE /topic/a x-bind-a:b", NO, YES),
    ];
    for (frame, plain, with_grants) in frames {
        let judged = |rule, stance| allowed(&RuleSet::new(vec![rule]), stance, &who("alice"), frame);
        assert_eq!(judged(allow(&["/queue/**", "/topic/**"]), Stance::Closed), plain, "{frame}");
        assert_eq!(judged(generous.clone(), Stance::Closed), with_grants, "{frame}, granted");
        assert!(judged(allow(&["**"]), Stance::Open), "{frame}, open");
        assert!(!allowed(&RuleSet::default(), Stance::Closed, &who("alice"), frame), "{frame}, no rule");
        assert!(allowed(&RuleSet::default(), Stance::Open, &who("alice"), frame), "{frame}, open, no rule");
    }
}
