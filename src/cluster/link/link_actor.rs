//! The link actor: owns one connection to one peer, from its hand-over to its end. The only actor that other nodes can
//! speak to.
//!
//! The members actor starts it; its peer's link actor sends it envelopes; whoever has something to say puts it into the
//! link's outbox and nudges it. It promises that what it takes in comes from that life of that peer, in order and in
//! time, and that what it sends is bounded: a peer that takes too little, errs, or is silent for too long loses the
//! link, and with it every lease on both sides.
//!
//! Spec: ORCH-3044.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ractor::message::SerializedMessage;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use ractor_cluster::node::NodeSessionMessage;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::cluster::link::links::{Demand, InboundEvent, LinkShared};
use crate::cluster::link::messages::{ENVELOPE, LinkMsg};
use crate::cluster::link::protocol::{ENVELOPE_BYTES_FULL, Envelope, LinkMessage, PoolAdvertisement};
use crate::cluster::membership::messages::MembersMsg;
use crate::cluster::shared::{ClusterShared, PeerShared};
use crate::cluster::sharing::announce::{Announced, announce, is_name};
use crate::cluster::sharing::inbound;
use crate::cluster::sharing::served;
use crate::cluster::sharing::warm;
use crate::core::cluster::link::{Link, Liveness};
use crate::core::cluster::wire;
use crate::core::fairness::hash::hex;
use crate::core::units::Timestamp;
use crate::env::STOOD_STILL;
use crate::planted::seeded_bug;

/// Longest time from the hand-over of a connection until the peer's link actor is known.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often attempts that still wait are spoken of, so that their gateways know that nothing hangs.
const WAITS_PERIOD: Duration = Duration::from_secs(1);

/// All that the actor needs.
pub(crate) struct LinkArgs {
    pub(crate) shared: Arc<ClusterShared>,
    pub(crate) peer: Arc<PeerShared>,
    pub(crate) link: Arc<LinkShared>,
}

/// The actor.
pub(crate) struct LinkActor;

/// Its state.
pub(crate) struct LinkState {
    pub(in crate::cluster) shared: Arc<ClusterShared>,
    pub(in crate::cluster) peer: Arc<PeerShared>,
    pub(in crate::cluster) link: Arc<LinkShared>,
    line: Link<Vec<LinkMessage>>,
    /// The peer's link actor, once it is known.
    remote: Option<ActorCell>,
    session: Option<ActorRef<NodeSessionMessage>>,
    began_at: Timestamp,
    /// The least difference between our clock and the peer's that an envelope has shown, in microseconds: that of the
    /// quickest one.
    quickest: Option<i64>,
    /// The peer's clock in its last envelope, and when that came.
    last_stamp: (u64, Timestamp),
    pub(in crate::cluster) announced: Announced,
    waits_said_at: Timestamp,
    ticked_at: Timestamp,
    /// The peer was silent for so long that its attempts here have been stopped.
    lease_is_over: bool,
}

/// What a link actor is called: nobody but the two sides can know it.
pub(crate) fn name_of(token: &[u8; 16]) -> String {
    hex(&Sha256::digest([b"orchestrator-core link ".as_slice(), token].concat()))
}

impl Actor for LinkActor {
    type Msg = LinkMsg;
    type State = LinkState;
    type Arguments = LinkArgs;

    async fn pre_start(&self, myself: ActorRef<LinkMsg>, args: LinkArgs) -> Result<LinkState, ActorProcessingErr> {
        let LinkArgs { shared, peer, link } = args;
        let now = shared.env.now();
        myself.send_after(shared.policy.tick, || LinkMsg::Tick);
        Ok(LinkState {
            line: Link::new(shared.policy.link, now),
            shared,
            peer,
            link,
            remote: None,
            session: None,
            began_at: now,
            quickest: None,
            last_stamp: (0, now),
            announced: Announced::default(),
            waits_said_at: now,
            ticked_at: now,
            lease_is_over: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<LinkMsg>,
        message: LinkMsg,
        state: &mut LinkState,
    ) -> Result<(), ActorProcessingErr> {
        state.shared.env.fault_point("link");
        let result = match message {
            LinkMsg::Envelope(bytes) => on_envelope(state, &bytes),
            LinkMsg::Flush => on_flush(state),
            LinkMsg::Ready(session) => on_ready(state, session),
            LinkMsg::Tick => on_tick(state, &myself),
            LinkMsg::Close(why) => Err(why.to_owned()),
        };
        if let Err(why) = result {
            close(state, &myself, why);
        }
        Ok(())
    }
}

fn close(state: &LinkState, myself: &ActorRef<LinkMsg>, why: String) {
    if !state.link.is_over() {
        tracing::warn!(target: "audit", event = "link_over", peer = %state.peer.name, %why);
        *state.peer.trouble.lock() = Some(why.clone());
    }
    state.link.end();
    if let Some(session) = &state.session {
        session.stop(Some(why.clone()));
    }
    myself.stop(Some(why));
}

fn on_ready(state: &mut LinkState, session: ActorRef<NodeSessionMessage>) -> Result<(), String> {
    state.session = Some(session);
    find_remote(state);
    on_flush(state)
}

/// The peer's link actor is a child of the session, under the name that its token gives.
fn find_remote(state: &mut LinkState) {
    let Some(session) = state.session.as_ref().filter(|_| state.remote.is_none()) else { return };
    let name = name_of(&state.link.secrets.peer_token);
    let found = session.get_children().into_iter().find(|child| child.get_name().as_deref() == Some(name.as_str()));
    if found.is_none() {
        return;
    }
    state.remote = found;
    state.peer.set_link(state.link.clone());
    state.shared.members.cast(MembersMsg::Linked(state.peer.name.clone())); // Nobody there: the next one starts anew.
    tracing::info!(peer = %state.peer.name, boot_id = %state.link.boot_id, "there is a link with a node");
}

fn on_envelope(state: &mut LinkState, bytes: &[u8]) -> Result<(), String> {
    let now = state.shared.env.now();
    let envelope = Envelope::read(bytes).map_err(|error| format!("what came is no envelope: {error}"))?;
    if !bool::from(envelope.token.as_slice().ct_eq(state.link.secrets.token.as_slice())) {
        return Ok(()); // Somebody else's: the peer itself would not have taken it for ours.
    }
    if envelope.protocol != state.link.protocol || envelope.boot_id != state.link.boot_id {
        return Err(format!("an envelope of protocol {} and life {}", envelope.protocol, envelope.boot_id));
    }
    check_delay(state, now, &envelope)?;
    let seq = (envelope.seq > 0).then_some(envelope.seq);
    let must_answer =
        state.line.take(now, seq, envelope.ack, bytes.len()).map_err(|fault| format!("the peer errs: {fault}"))?;
    let figures = &state.link.figures;
    figures.envelopes_in.fetch_add(1, Relaxed);
    figures.bytes_in.fetch_add(bytes.len() as u64, Relaxed);
    if envelope.echo.0 > 0 {
        let there = now.as_micros().saturating_sub(envelope.echo.0).saturating_sub(envelope.echo.1);
        figures.round_trip_us.store(there, Relaxed);
    }
    state.last_stamp = (envelope.sent_us, now);
    state.lease_is_over = false;
    if figures.is_suspect.swap(false, Relaxed) {
        state.peer.apply_limits();
    }
    for word in envelope.words {
        on_word(state, word)?;
    }
    on_flush(state)?;
    if must_answer && state.line.owes() {
        beat(state);
    }
    Ok(())
}

/// An envelope that has been on its way for much longer than others is of a time that is over: one of the nodes stood
/// still.
fn check_delay(state: &mut LinkState, now: Timestamp, envelope: &Envelope) -> Result<(), String> {
    // The peer's clock is its own word: nothing that it says may overflow here.
    let sent = i64::try_from(envelope.sent_us).unwrap_or(i64::MAX);
    let difference = (now.as_micros() as i64).saturating_sub(sent);
    let quickest = *state.quickest.insert(state.quickest.map_or(difference, |known| known.min(difference)));
    let late_ms = difference.saturating_sub(quickest) / 1000;
    if late_ms > i64::from(envelope.deadline_ms) {
        return Err(format!("an envelope came {late_ms} ms late, {} ms are allowed", envelope.deadline_ms));
    }
    Ok(())
}

fn on_word(state: &mut LinkState, word: LinkMessage) -> Result<(), String> {
    let (shared, link) = (&state.shared, &state.link);
    match word {
        LinkMessage::Pools { cards, zone, draining } => {
            if !cards.iter().all(PoolAdvertisement::is_plain) || !zone.iter().all(|zone| is_name(zone)) {
                return Err(
                    "it announces a pool or a zone by a name that is none: too long, or with control characters".into(),
                );
            }
            *link.advertised.zone.lock() = Some(zone);
            *link.advertised.cards.lock() = Arc::new(cards.into_iter().map(|card| (card.pool.clone(), card)).collect());
            link.advertised.is_draining.store(draining, Relaxed);
            link.changed.notify_waiters();
            shared.members.cast(MembersMsg::Announced(state.peer.name.clone())); // Nobody there: the next one starts anew.
        }
        LinkMessage::Capacity(limits) => {
            link.set_limits(limits);
            state.peer.apply_limits();
        }
        LinkMessage::Run { attempt, task } => inbound::take_in(shared, link, attempt, *task)?,
        LinkMessage::Queued(waiting) => {
            for attempt in waiting {
                link.hear(attempt, InboundEvent::Waits)?;
            }
        }
        LinkMessage::Started(attempt) => link.hear(attempt, InboundEvent::Begun)?,
        LinkMessage::Tokens { attempt, texts } => link.hear(attempt, InboundEvent::Tokens(texts))?,
        LinkMessage::End { attempt, end } => link.hear(attempt, InboundEvent::End(end))?,
        LinkMessage::Credit { attempt, tokens, bytes } => inbound::on_credit(link, attempt, tokens, bytes),
        LinkMessage::Cancel(attempt) => inbound::stop(shared, link, attempt),
        LinkMessage::Served(served) => served::take_in(&state.peer, &served),
        LinkMessage::Warm(warm) => warm::take_in(shared, &state.peer, warm)?,
        LinkMessage::Demand { number, heard, asked } => {
            let asked = asked.into_iter().map(|asked| (asked.client.clone(), asked)).collect();
            *link.demand.lock() = Demand { number, heard, asked };
        }
    }
    Ok(())
}

/// Sends what is to be said, as far as the peer has taken up what was sent before.
fn on_flush(state: &mut LinkState) -> Result<(), String> {
    let mut words = state.link.take_words();
    while !words.is_empty() {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(word) = words.front() {
            let size = word.size();
            if !batch.is_empty() && bytes + size > ENVELOPE_BYTES_FULL {
                break;
            }
            bytes += size;
            batch.extend(words.pop_front());
        }
        state.line.push(bytes, batch).map_err(|fault| format!("the peer is too slow: {fault}"))?;
    }
    send(state)
}

fn send(state: &mut LinkState) -> Result<(), String> {
    if state.remote.is_none() {
        return Ok(());
    }
    let now = state.shared.env.now();
    while let Some((seq, words)) = state.line.next(now) {
        post(state, now, seq, words)?;
    }
    let (messages, bytes) = state.line.load();
    state.link.figures.outbox_messages.store(messages as u64, Relaxed);
    state.link.figures.outbox_bytes.store(bytes as u64, Relaxed);
    Ok(())
}

fn beat(state: &mut LinkState) {
    let now = state.shared.env.now();
    state.line.note_sent(now);
    let _ = post(state, now, 0, Vec::new()); // A beat can always be written.
}

fn post(state: &LinkState, now: Timestamp, seq: u64, words: Vec<LinkMessage>) -> Result<(), String> {
    let Some(remote) = &state.remote else { return Ok(()) };
    let held = now.since(state.last_stamp.1).as_micros() as u64;
    let envelope = Envelope {
        token: state.link.secrets.peer_token,
        protocol: state.link.protocol,
        boot_id: state.shared.place.boot_id,
        seq,
        ack: state.line.received(),
        sent_us: now.as_micros(),
        echo: (state.last_stamp.0, held),
        deadline_ms: state.shared.policy.link.dead_after.as_millis() as u32,
        words,
    };
    let bytes = wire::encode(&envelope).map_err(|error| error.to_string())?;
    state.link.figures.envelopes_out.fetch_add(1, Relaxed);
    state.link.figures.bytes_out.fetch_add(bytes.len() as u64, Relaxed);
    let message = SerializedMessage::Cast { variant: ENVELOPE.into(), args: bytes, metadata: None };
    remote.send_serialized(message).map_err(|_| "the connection is gone".to_owned())
}

fn on_tick(state: &mut LinkState, myself: &ActorRef<LinkMsg>) -> Result<(), String> {
    let now = state.shared.env.now();
    myself.send_after(state.shared.policy.tick, || LinkMsg::Tick);
    let last = std::mem::replace(&mut state.ticked_at, now);
    if now.since(last) >= state.shared.policy.tick + STOOD_STILL {
        return Ok(()); // We stood still: what has come meanwhile is read before anybody is judged.
    }
    find_remote(state);
    if state.remote.is_none() {
        let late = now.since(state.began_at) >= READY_TIMEOUT;
        return if late { Err(format!("no link within {READY_TIMEOUT:?}")) } else { Ok(()) };
    }
    match state.line.liveness(now) {
        Liveness::Dead if !seeded_bug!(KeepDeadLink) => {
            return Err(format!("not a word for {:?}", state.shared.policy.link.dead_after));
        }
        Liveness::Suspect if !state.link.figures.is_suspect.swap(true, Relaxed) => state.peer.apply_limits(),
        Liveness::Suspect | Liveness::Alive | Liveness::Dead => {}
    }
    if state.line.silence(now) >= state.shared.policy.lease && !std::mem::replace(&mut state.lease_is_over, true) {
        inbound::stop_all(&state.shared, &state.link, "its gateway has not been heard of for three beats");
    }
    announce(&state.shared, &state.link, &mut state.announced);
    let news = served::news_for(&state.shared, &state.peer.name);
    if !news.is_empty() {
        state.link.say(LinkMessage::Served(news));
    }
    let warm = warm::news_for(&state.shared, &state.peer.name);
    if !warm.is_empty() {
        state.link.say(LinkMessage::Warm(warm));
    }
    if now.since(state.waits_said_at) >= WAITS_PERIOD {
        let since = std::mem::replace(&mut state.waits_said_at, now);
        inbound::say_who_waits(&state.link, since);
    }
    on_flush(state)?;
    if state.line.is_beat_due(now) {
        beat(state);
    }
    Ok(())
}
