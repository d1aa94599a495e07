//! Conversations stay on their replica (ORCH-3009).

use orchestrator_core::config::{ClientConfig, SessionConfig};
use orchestrator_core::core::SessionId;
use orchestrator_core::core::task::KvHint;
use orchestrator_core::{Config, Env, Event, Orchestrator};

use crate::support::{client, millisecond, pool, request};

async fn three_replicas() -> Orchestrator {
    let sessions = SessionConfig { capacity: 2, ttl_ms: 60_000 };
    let config = Config { sessions, ..Config::default() };
    let builder = Orchestrator::builder().config(config).env(Env::simulated(2));
    let pool = pool("a", 3, 2, millisecond());
    let orchestrator = builder.pool(pool, orchestrator_core::gpu::SimEngine::new).start().await.unwrap();
    orchestrator.until_ready().await;
    orchestrator
}

/// Runs one task of a conversation: the replica that served it, and whether it was warm.
async fn turn(orchestrator: &Orchestrator, session: &str, id: &str, hint: KvHint) -> (u16, bool) {
    let mut request = request(id, 3);
    (request.session_id, request.kv_hint) = (Some(SessionId::parse(session).unwrap()), hint);
    let mut stream = orchestrator.submit(request).await.unwrap().stream();
    let mut started = None;
    while let Some((_, event)) = stream.next().await {
        if let Event::Started(event) = event {
            started = Some((event.identity.replica.index, event.kv_warmth));
        }
    }
    // The sessions actor hears of it a message later.
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    started.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_conversation_stays_on_its_last_replica_and_says_that_it_is_warm() {
    let orchestrator = three_replicas().await;
    // Another task keeps replica 0 busy, so that the conversation starts elsewhere.
    orchestrator.submit(request("busy", 15)).await.unwrap();
    let (home, warm) = turn(&orchestrator, "s", "t1", KvHint::Reuse).await;
    assert!(!warm && home != 0);
    for id in ["t2", "t3", "t4"] {
        assert_eq!(turn(&orchestrator, "s", id, KvHint::Reuse).await, (home, true), "{id}");
    }
    let (cold_replica, warm) = turn(&orchestrator, "s", "t5", KvHint::Cold).await;
    assert_eq!((cold_replica, warm), (0, false), "a cold start takes the least loaded");
}

#[tokio::test(start_paused = true)]
async fn conversations_are_seen_forgotten_and_bounded() {
    let orchestrator = three_replicas().await;
    let (anonymous, session) = (client("anonymous"), |id: &str| SessionId::parse(id).unwrap());
    turn(&orchestrator, "s1", "t1", KvHint::Reuse).await;
    let seen = orchestrator.session(&anonymous, &session("s1")).await.unwrap().unwrap();
    assert_eq!(seen.tasks, 1);
    assert!(seen.replica_id.is_some() && seen.expires_in_ms <= 60_000);
    assert!(orchestrator.session(&client("other"), &session("s1")).await.unwrap().is_none(), "not another client's");
    turn(&orchestrator, "s2", "t2", KvHint::Reuse).await;
    turn(&orchestrator, "s3", "t3", KvHint::Reuse).await;
    assert!(orchestrator.session(&anonymous, &session("s1")).await.unwrap().is_none(), "the oldest made room");
    assert!(orchestrator.end_session(&anonymous, &session("s3")).await.unwrap().is_some());
    assert!(orchestrator.session(&anonymous, &session("s3")).await.unwrap().is_none());
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    assert!(orchestrator.session(&anonymous, &session("s2")).await.unwrap().is_none(), "its time is over");
}

#[tokio::test(start_paused = true)]
async fn a_conversation_that_begins_stays_whatever_its_clients_weight_is() {
    let sessions = SessionConfig { capacity: 2, ttl_ms: 60_000 };
    let clients = [("heavy".to_owned(), ClientConfig { weight: 10, ..ClientConfig::default() })].into();
    let builder =
        Orchestrator::builder().config(Config { sessions, clients, ..Config::default() }).env(Env::simulated(3));
    let pool = pool("a", 1, 2, millisecond());
    let orchestrator = builder.pool(pool, orchestrator_core::gpu::SimEngine::new).start().await.unwrap();
    let session = |id: &str| SessionId::parse(id).unwrap();
    let begin = async |who: &str, id: &str| {
        let mut request = request(id, 3);
        (request.client_id, request.session_id) = (client(who), Some(session(id)));
        orchestrator.submit(request).await.unwrap().stream().collect().await
    };
    for (who, id) in [("heavy", "h1"), ("heavy", "h2"), ("light", "l1")] {
        begin(who, id).await;
        assert!(orchestrator.session(&client(who), &session(id)).await.unwrap().is_some(), "{id}");
    }
    assert!(orchestrator.session(&client("heavy"), &session("h1")).await.unwrap().is_none(), "it has made room");
    begin("heavy", "h3").await;
    assert!(orchestrator.session(&client("light"), &session("l1")).await.unwrap().is_none(), "as the lighter one");
}
