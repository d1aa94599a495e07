//! Digests of model files (ORCH-3037): read once, known until the file changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::config::ModelFile;
use crate::core::fairness::hash::hex;
use crate::core::id::ReplicaId;
use crate::gpu::engine::EngineError;
use crate::gpu::threads;

/// Read at once, in bytes.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Progress is logged each time that so many bytes have been read: every few seconds.
const PROGRESS_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Most files that are remembered; beyond it all are forgotten, and read again.
const KNOWN_MAX: usize = 1_024;

/// What makes a file the same: size, time of its last change in nanoseconds, device and inode.
type Mark = (u64, i128, u64, u64);

/// Digests of files that have been read, by path. A cache of facts about the host, so one for the process. The inner
/// lock is held while a file is read: whoever needs the same one meanwhile waits for it instead of reading it too.
type Known = BTreeMap<String, Arc<tokio::sync::Mutex<Option<(Mark, String)>>>>;
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// Checks each file; see [`crate::gpu::process::host::digest`].
pub(crate) async fn check(files: &[ModelFile], replica: &ReplicaId) -> Result<Option<String>, EngineError> {
    let mut found = Vec::new();
    for file in files {
        let is = digest_of(&file.path, replica).await?;
        if !is.eq_ignore_ascii_case(&file.sha256) {
            let text = format!("{}: its SHA-256 is {is}, and should be {}", file.path, file.sha256.to_lowercase());
            return Err(EngineError::Preload(text.into()));
        }
        found.push(is);
    }
    Ok(match found.as_slice() {
        [] => None,
        [only] => Some(format!("sha256:{only}")),
        several => Some(format!("sha256:{}", hex(&Sha256::digest(several.join("\n"))))),
    })
}

async fn digest_of(path: &str, replica: &ReplicaId) -> Result<String, EngineError> {
    let entry = {
        let mut known = KNOWN.lock();
        if known.len() >= KNOWN_MAX && !known.contains_key(path) {
            known.clear();
        }
        known.entry(path.to_owned()).or_default().clone()
    };
    let mut entry = entry.lock_owned().await;
    let unreadable = |error: std::io::Error| EngineError::Preload(format!("{path}: it cannot be read: {error}").into());
    let mark = mark(Path::new(path)).map_err(unreadable)?;
    if let Some((_, digest)) = entry.as_ref().filter(|(known, _)| *known == mark) {
        return Ok(digest.clone());
    }
    let (owned, replica) = (path.to_owned(), replica.clone());
    // The thread has the lock: should nobody wait for it any more, what it finds is known all the same, and nobody
    // reads beside it.
    let read = threads::run("model-digest", move || {
        let digest = read(&owned, &replica)?;
        *entry = Some((mark, digest.clone())); // As it was before: one that changed meanwhile is read again.
        Ok(digest)
    });
    read.await.unwrap_or_else(|| Err(std::io::ErrorKind::Other.into())).map_err(unreadable)
}

fn mark(path: &Path) -> std::io::Result<Mark> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(std::io::Error::other("it is no regular file")); // A pipe or a device might never end.
    }
    let changed = i128::from(about.mtime()) * 1_000_000_000 + i128::from(about.mtime_nsec());
    Ok((about.size(), changed, about.dev(), about.ino()))
}

fn read(path: &str, replica: &ReplicaId) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let (mut hash, mut chunk, mut done) = (Sha256::new(), vec![0; CHUNK_BYTES], 0_u64);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&chunk[..read]);
        let before = done / PROGRESS_BYTES;
        done += read as u64;
        if done / PROGRESS_BYTES > before {
            tracing::info!(replica_id = %replica, path, done, bytes, "a model file is being checked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::PoolId;

    fn replica() -> ReplicaId {
        ReplicaId { pool: PoolId::parse("p").expect("valid"), index: 0 }
    }

    async fn check_one(path: &Path, sha256: &str) -> Result<Option<String>, EngineError> {
        let file = ModelFile { path: path.display().to_string(), sha256: sha256.into() };
        check(&[file], &replica()).await
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_it_has_changed_and_only_then() {
        const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let path = std::env::temp_dir().join(format!("digest-{}", std::process::id()));
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(check_one(&path, ABC).await, Ok(Some(format!("sha256:{ABC}"))));
        assert_eq!(check_one(&path, &ABC.to_uppercase()).await, Ok(Some(format!("sha256:{ABC}"))));
        let key = path.display().to_string();
        let known = KNOWN.lock().get(&key).cloned().unwrap();
        known.lock().await.as_mut().unwrap().1 = "00".into(); // What is known is used.
        let error = check_one(&path, ABC).await.unwrap_err().to_string();
        assert!(error.contains("its SHA-256 is 00, and should be ba78"), "{error}");
        std::fs::write(&path, "abcd").unwrap();
        let error = check_one(&path, ABC).await.unwrap_err().to_string();
        assert!(error.contains("its SHA-256 is 88d4266f"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(check_one(&path, ABC).await.unwrap_err().to_string().contains("cannot be read"));
    }

    #[tokio::test]
    async fn several_files_have_one_digest_and_none_has_none() {
        assert_eq!(check(&[], &replica()).await, Ok(None));
    }
}
