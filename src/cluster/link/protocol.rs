//! What nodes say to each other on a link, behind the introduction: envelopes, and the words in them.
//!
//! Every type here has a fixed form in bytes: no optional fields are left out, nothing is recursive, and every list has
//! a bound that [`Envelope::read`] checks. A change of any of them is another protocol.
//!
//! Spec: ORCH-3044.

use serde::{Deserialize, Serialize};

use crate::core::ErrorCode;
use crate::core::admission::limits::Held;
use crate::core::cluster::node::BootId;
use crate::core::cluster::wire::{self, WireError};
use crate::core::id::{ClientId, PoolId, SessionId};
use crate::core::pool::model::ModelSpec;
use crate::core::task::resume::DeterminismClass;
use crate::core::task::resume::OnLoss;
use crate::core::task::traceparent::TraceParent;
use crate::core::task::{Determinism, FinishReason, KvHint, OnDisconnect, Priority, Sampling, TaskRequest, Workload};
use crate::core::text::line::{Message, Name};
use crate::core::units::Tokens;
use crate::gpu::engine::Job;

/// Largest envelope, in bytes: a task's longest prompt and what is around it.
pub const ENVELOPE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of words that are put into one envelope, unless a single word has more.
pub(crate) const ENVELOPE_BYTES_FULL: usize = 48 * 1024;
/// Most pools that one node announces.
pub const POOLS_MAX: usize = 256;
/// Tokens of one attempt that are sent and not taken up.
pub const CREDIT_TOKENS: u32 = 256;
/// Their bytes; one token may exceed it.
pub const CREDIT_BYTES: u32 = 256 * 1024;

/// One message of a link.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// What the receiver told the sender to show with everything that it says: nobody else on this node's wire knows
    /// it.
    pub token: [u8; 16],
    /// The protocol of what is inside.
    pub protocol: u16,
    /// The life of the sender.
    pub boot_id: BootId,
    /// Its number on this link, from 1; 0 for a beat, which has none.
    pub seq: u64,
    /// The last number that came from the other side.
    pub ack: u64,
    /// When it was sent, by the sender's clock, in microseconds.
    pub sent_us: u64,
    /// The `sent_us` of the last envelope that came, and for how long it has been here, in microseconds.
    pub echo: (u64, u64),
    /// How much later than the quickest envelope of the link it may arrive, in milliseconds: after that it is void, and
    /// the link too.
    pub deadline_ms: u32,
    /// What is said.
    pub words: Vec<LinkMessage>,
}

impl Envelope {
    /// Reads an envelope.
    ///
    /// # Errors
    /// One line: it is none, or one of its lists is longer than any may be.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let envelope: Envelope =
            wire::decode_within::<_, ENVELOPE_BYTES_MAX>(bytes).map_err(|error: WireError| error.to_string())?;
        match envelope.words.iter().find_map(LinkMessage::excess) {
            Some(excess) => Err(excess),
            None => Ok(envelope),
        }
    }
}

/// The number that a gateway gives an attempt that it sends to an owner. Unique on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptId(pub u64);

/// One thing that is said. "The gateway" has accepted a task; "the owner" has the engine.
#[derive(Debug, Serialize, Deserialize)]
pub enum LinkMessage {
    /// All pools of this node, in place of what was said of them before.
    Pools {
        /// The pools that the receiver may use.
        cards: Vec<PoolAdvertisement>,
        /// Where the node is.
        zone: Option<String>,
        /// The node is being drained: it takes nothing new.
        draining: bool,
    },
    /// How many attempts of the receiver these pools take now.
    Capacity(Vec<PoolCapacity>),
    /// The gateway asks the owner to run an attempt.
    Run {
        /// Its number: the epoch of the lease. Each attempt has its own, so that what comes late of an earlier one is
        /// nobody's.
        attempt: AttemptId,
        /// What is to be run.
        task: Box<AttemptTask>,
    },
    /// The owner has taken an attempt in, or has it still: it waits there.
    Queued(Vec<AttemptId>),
    /// A worker of the owner has begun the attempt.
    Started(AttemptId),
    /// The attempt's tokens, in their order.
    Tokens {
        /// Whose.
        attempt: AttemptId,
        /// Their texts.
        texts: Vec<String>,
    },
    /// The gateway has taken up so many tokens, of so many bytes.
    Credit {
        /// Of whom.
        attempt: AttemptId,
        /// Tokens.
        tokens: u32,
        /// Their bytes.
        bytes: u32,
    },
    /// The attempt has ended at the owner.
    End {
        /// Which.
        attempt: AttemptId,
        /// How.
        end: AttemptEnd,
    },
    /// The gateway wants no more of an attempt.
    Cancel(AttemptId),
    /// What the sender's pools have served for clients of other gateways than the receiver, since it last said so.
    Served(Vec<ServedBy>),
    /// Conversations that the sender's own pools have served since it last said so.
    Warm(Vec<WarmSession>),
    /// What the sender's clients asked for in its last second and have in use there, of those with limits.
    Demand {
        /// The number of that second, from 1.
        number: u64,
        /// The last such number that the sender has of the receiver.
        heard: u64,
        /// Each of these clients.
        asked: Vec<Asked>,
    },
}

/// Most entries of a list that has no bound of its own.
const LIST_MAX: usize = 16_384;

impl LinkMessage {
    /// What is too long in it, if anything is.
    fn excess(&self) -> Option<String> {
        let (what, found, most) = match self {
            LinkMessage::Pools { cards, .. } => ("pools", cards.len(), POOLS_MAX),
            LinkMessage::Capacity(limits) => ("limits", limits.len(), POOLS_MAX),
            LinkMessage::Tokens { texts, .. } => ("tokens", texts.len(), CREDIT_TOKENS as usize),
            LinkMessage::Queued(attempts) => ("attempts", attempts.len(), LIST_MAX),
            LinkMessage::Served(served) => ("clients", served.len(), LIST_MAX),
            LinkMessage::Warm(sessions) => ("sessions", sessions.len(), LIST_MAX),
            LinkMessage::Demand { asked, .. } => ("clients", asked.len(), LIST_MAX),
            LinkMessage::Run { .. }
            | LinkMessage::Started(_)
            | LinkMessage::Credit { .. }
            | LinkMessage::End { .. }
            | LinkMessage::Cancel(_) => return None,
        };
        (found > most).then(|| format!("{found} {what} in one word, at most {most} are allowed"))
    }

    /// About how many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        const FEW: usize = 32;
        match self {
            LinkMessage::Tokens { texts, .. } => texts.iter().map(|text| text.len() + 2).sum::<usize>() + FEW,
            LinkMessage::Run { task, .. } => {
                task.prompt.len() + task.inputs.iter().map(String::len).sum::<usize>() + 256
            }
            LinkMessage::Pools { cards, .. } => cards.len() * 512 + FEW,
            LinkMessage::Capacity(limits) => limits.len() * 64 + FEW,
            LinkMessage::Queued(attempts) => attempts.len() * 8 + FEW,
            LinkMessage::Served(served) => served.len() * 96 + FEW,
            LinkMessage::Warm(sessions) => sessions.len() * 128 + FEW,
            LinkMessage::Demand { asked, .. } => asked.len() * 128 + FEW,
            LinkMessage::Started(_) | LinkMessage::Credit { .. } | LinkMessage::End { .. } | LinkMessage::Cancel(_) => {
                FEW
            }
        }
    }
}

/// A pool as its node announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAdvertisement {
    /// Its name.
    pub pool: PoolId,
    /// The engine's kind.
    pub engine: String,
    /// What it serves.
    pub spec: ModelSpec,
    /// Other names of its model.
    pub aliases: Vec<String>,
    /// Kinds of work.
    pub workloads: Vec<Workload>,
    /// Bytes of prompt that make one token.
    pub bytes_per_token: u32,
    /// Places of all its replicas.
    pub slots: u32,
    /// What its engines make of the same seed, by what they have shown.
    pub determinism_class: Option<DeterminismClass>,
    /// What its engines are; `None` while none is Ready.
    pub identity: Option<AdvertisedIdentity>,
}

/// How many attempts a pool takes now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCapacity {
    /// The pool.
    pub pool: PoolId,
    /// How many of the receiver may wait, beyond those that have begun.
    pub attempts: u32,
    /// They would wait: every place is taken.
    pub is_full: bool,
}

/// What a pool's engines are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertisedIdentity {
    /// Their version.
    pub engine_version: Name,
    /// The digest of their model.
    pub model_digest: Name,
    /// Longest context of one task, in tokens.
    pub ctx: u32,
}

/// A task as an attempt: what an engine needs of it, and what the owner's order needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptTask {
    /// The pool that is asked.
    pub pool: PoolId,
    /// Its name at the gateway, for logs and traces.
    pub task_id: String,
    /// Who pays.
    pub client_id: ClientId,
    /// Its conversation.
    pub session_id: Option<SessionId>,
    /// Kind of work.
    pub workload: Workload,
    /// Its class.
    pub priority: Priority,
    /// The seed of every attempt.
    pub seed: u64,
    /// Whether the same seed must give the same tokens.
    pub determinism: Determinism,
    /// How tokens are drawn.
    pub sampling: AttemptSampling,
    /// The text to go on from.
    pub prompt: String,
    /// Texts to embed or to rank.
    pub inputs: Vec<String>,
    /// Most tokens.
    pub max_tokens: u32,
    /// The client's guess of them.
    pub expected_tokens: Option<u32>,
    /// Whether a warm cache is wanted.
    pub kv_hint: KvHint,
    /// The trace that it belongs to.
    pub traceparent: Option<String>,
}

impl AttemptTask {
    /// A gateway's task as an attempt of this pool.
    pub fn new(pool: PoolId, job: &Job<'_>) -> Self {
        let request = job.request;
        AttemptTask {
            pool,
            client_id: request.client_id.clone(),
            session_id: request.session_id.clone(),
            workload: request.workload,
            priority: request.priority,
            seed: job.seed,
            determinism: request.determinism,
            sampling: AttemptSampling::from(&request.parameters),
            prompt: request.prompt.clone(),
            inputs: request.inputs.clone(),
            max_tokens: request.max_tokens.0,
            expected_tokens: request.expected_tokens.map(|tokens| tokens.0),
            kv_hint: request.kv_hint,
            traceparent: job.trace(),
            task_id: job.task_id.to_string(),
        }
    }

    /// The attempt as the owner's own runtime takes it. A lost attempt ends it: its gateway decides what follows.
    ///
    /// # Errors
    /// One line: a name in it is none.
    pub fn request(self) -> Result<TaskRequest, String> {
        let client_id = ClientId::parse(self.client_id.as_str()).map_err(|error| format!("client_id: {error}"))?;
        let session_id = self.session_id.as_ref().map(|session| SessionId::parse(session.as_str())).transpose();
        let session_id = session_id.map_err(|error| format!("session_id: {error}"))?;
        Ok(TaskRequest {
            client_id,
            session_id,
            workload: self.workload,
            priority: self.priority,
            seed: Some(self.seed),
            determinism: self.determinism,
            parameters: self.sampling.into(),
            inputs: self.inputs,
            max_tokens: Tokens(self.max_tokens),
            expected_tokens: self.expected_tokens.map(Tokens),
            kv_hint: self.kv_hint,
            on_loss: Some(OnLoss::Fail),
            on_disconnect: OnDisconnect::Keep,
            pools: Some([self.pool].into()),
            traceparent: self.traceparent.and_then(|text| TraceParent::parse(&text)),
            ..TaskRequest::completion(self.prompt)
        })
    }
}

/// [`Sampling`] in a form that leaves nothing out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptSampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    stop: Vec<String>,
}

impl From<&Sampling> for AttemptSampling {
    fn from(sampling: &Sampling) -> Self {
        let Sampling { temperature, top_p, top_k, min_p, repeat_penalty, stop } = sampling.clone();
        AttemptSampling { temperature, top_p, top_k, min_p, repeat_penalty, stop }
    }
}

impl From<AttemptSampling> for Sampling {
    fn from(sampling: AttemptSampling) -> Self {
        let AttemptSampling { temperature, top_p, top_k, min_p, repeat_penalty, stop } = sampling;
        Sampling { temperature, top_p, top_k, min_p, repeat_penalty, stop }
    }
}

/// How an attempt ended at its owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AttemptEnd {
    /// Its engine ended it.
    Done {
        /// Why.
        reason: FinishReason,
        /// Prompt tokens by the engine's count.
        tokens_in: u32,
    },
    /// It was lost, or could not be taken in.
    Failed {
        /// By which of our codes.
        code: ErrorCode,
        /// In words.
        message: Message,
    },
}

/// What a client with limits asks of a node, and has there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Who.
    pub client: ClientId,
    /// Tasks in the last second, refused ones included.
    pub tasks: u32,
    /// What it has in use of its quotas.
    pub held: Held,
}

/// A conversation, and where its cache is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmSession {
    /// The pool that served it last.
    pub pool: PoolId,
    /// Whose it is.
    pub client: ClientId,
    /// Its name.
    pub session: SessionId,
}

/// What a pool has served for a client through one gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedBy {
    /// The pool.
    pub pool: PoolId,
    /// The client.
    pub client: ClientId,
    /// The class.
    pub class: Priority,
    /// Weighted tokens, scaled, as the accounts count them; less than nothing when a charge was corrected.
    pub cost: i64,
}
