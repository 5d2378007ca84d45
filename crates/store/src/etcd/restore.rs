//! A restore that takes more than one transaction, as etcd bounds these: the writes are laid beside the state first, then one
//! transaction says that they count, then they are made. A restore that is cut off before that word has changed nothing;
//! one that is cut off after it is finished by the next server that starts, before it reads anything.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Core, TXN_BYTES, TXN_OPS, chunks};
use crate::{Compare, Error, KeyValue, Op, Result, Txn, TxnOutcome, backup};

/// Everything of a restore under way is below this; no engine's user has keys here.
const PLACE: &[u8] = b"/restoring/";
/// Whose restore it is: each of its transactions compares this key, so that a later restore ends an earlier one.
const OWNER: Bytes = Bytes::from_static(b"/restoring/owner");
/// The word that the writes count.
const DECIDED: Bytes = Bytes::from_static(b"/restoring/decided");
/// Laid down writes: what follows is the key.
const PUT: &[u8] = b"/restoring/put";
const DELETE: &[u8] = b"/restoring/delete";

fn superseded() -> Error {
    Error::Engine { context: "restoring", source: "another restore is under way".into() }
}

/// Puts the state of a backup in force; the revision at which it is.
pub(super) async fn run(core: &Core, wanted: BTreeMap<Bytes, Bytes>) -> Result<u64> {
    finish(core).await?;
    let present = core.range(b"", None, 0, None, false).await?;
    let own = present.items.into_iter().filter(|kv| !kv.key.starts_with(PLACE)).collect();
    let ops = backup::difference(own, wanted);
    let mut parts = chunks(ops);
    if parts.len() <= 1 {
        let ops = parts.pop().unwrap_or_default();
        return match core.txn(Txn { compare: Vec::new(), ops }).await? {
            TxnOutcome::Committed { revision } | TxnOutcome::Conflict { revision, .. } => Ok(revision),
        };
    }
    let owner = lay_down(core, parts.into_iter().flatten().collect()).await?;
    decide(core, owner).await?;
    finish(core).await
}

/// Lays the writes beside the state. The revision of the owner's key is what the next steps compare.
async fn lay_down(core: &Core, ops: Vec<Op>) -> Result<u64> {
    // From here on no earlier restore can come to count; one that counts already is not disturbed.
    let undecided = Compare { key: DECIDED, mod_revision: 0 };
    let owner = expect(core, undecided, vec![put(OWNER, Bytes::new())]).await?;
    // What a restore has left that was cut off before it counted.
    let left = core.range(PLACE, None, 0, None, true).await?.items;
    let left = left.into_iter().filter(|kv| kv.key != OWNER).map(|kv| Op::Delete { key: kv.key });
    let laid = ops.into_iter().map(|op| match op {
        Op::Put { key, value } => put([PUT, &key].concat().into(), value),
        Op::Delete { key } => put([DELETE, &key].concat().into(), Bytes::new()),
    });
    for ops in chunks(left.collect()).into_iter().chain(chunks(laid.collect())) {
        expect(core, Compare { key: OWNER, mod_revision: owner }, ops).await?;
    }
    Ok(owner)
}

/// Says that what is laid down counts.
async fn decide(core: &Core, owner: u64) -> Result<u64> {
    expect(core, Compare { key: OWNER, mod_revision: owner }, vec![put(DECIDED, Bytes::new())]).await
}

/// Makes the writes of a restore that counts and is not yet through, whoever began it; the newest revision.
pub(super) async fn finish(core: &Core) -> Result<u64> {
    let found = core.range(&DECIDED, None, 1, None, true).await?;
    let Some(decided) = found.items.into_iter().find(|kv| kv.key == DECIDED) else {
        return Ok(found.revision);
    };
    let same = Compare { key: DECIDED, mod_revision: decided.mod_revision };
    loop {
        // Each write of the state takes its own away from what is laid down, in the same transaction.
        let laid = core.range(PLACE, None, TXN_OPS, None, false).await?.items;
        let steps: Vec<[Op; 2]> = laid.into_iter().filter_map(step).collect();
        if steps.is_empty() {
            let ops = [DECIDED, OWNER].map(|key| Op::Delete { key }).to_vec();
            return match core.txn(Txn { compare: vec![same], ops }).await? {
                // Another server was quicker.
                TxnOutcome::Committed { revision } | TxnOutcome::Conflict { revision, .. } => Ok(revision),
            };
        }
        let mut bytes = 0;
        let fits = |step: &&[Op; 2]| {
            bytes += step.iter().map(super::size).sum::<usize>();
            bytes <= TXN_BYTES
        };
        let count = steps.iter().take(TXN_OPS / 2).take_while(fits).count().max(1);
        let ops = steps.into_iter().take(count).flatten().collect();
        let txn = Txn { compare: vec![same.clone()], ops };
        if let TxnOutcome::Conflict { revision, .. } = core.txn(txn).await? {
            return Ok(revision);
        }
    }
}

/// A write that is laid down, and the end of its being so.
fn step(laid: KeyValue) -> Option<[Op; 2]> {
    let done = Op::Delete { key: laid.key.clone() };
    let op = if laid.key.starts_with(PUT) {
        put(laid.key.slice(PUT.len()..), laid.value)
    } else if laid.key.starts_with(DELETE) {
        Op::Delete { key: laid.key.slice(DELETE.len()..) }
    } else {
        return None;
    };
    Some([op, done])
}

fn put(key: Bytes, value: Bytes) -> Op {
    Op::Put { key, value }
}

async fn expect(core: &Core, compare: Compare, ops: Vec<Op>) -> Result<u64> {
    match core.txn(Txn { compare: vec![compare], ops }).await? {
        TxnOutcome::Committed { revision } => Ok(revision),
        TxnOutcome::Conflict { .. } => Err(superseded()),
    }
}

/// Whether a key is of a restore under way and not of the state.
pub(super) fn is_own(key: &[u8]) -> bool {
    key.starts_with(PLACE)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::members::Member;
    use super::super::{Options, core_of};
    use super::*;
    use crate::contract;

    /// Cut off before it counts, a restore has changed nothing; cut off after that, the next server finishes it.
    #[tokio::test]
    async fn a_restore_is_whole_or_not_at_all() {
        let member = Member::alone(false);
        let options =
            || Options { prefix: Bytes::from_static(b"/carrack"), ..Options::new(vec![member.client_url()]) };
        let store = member.connect(options()).await;
        contract::write(&store, (0..100).map(|n| contract::put(&format!("/old/{n}"), "1")).collect()).await;
        contract::write(&store, vec![contract::put("/same", "1")]).await;
        let wanted = || {
            let new = (0..1000).map(|n| (Bytes::from(format!("/new/{n}")), Bytes::from_static(b"2")));
            let same = [("/same", "1"), ("/old/7", "3")].map(|(key, value)| (key.into(), value.into()));
            new.chain(same).collect::<BTreeMap<Bytes, Bytes>>()
        };
        let counts = async |store: &crate::Store| {
            let mut counts = Vec::new();
            for prefix in ["/old/", "/new/", "/restoring/"] {
                let range = store.range(contract::bytes(prefix), None, 0, None).await.expect("reads");
                counts.push(range.items.len());
            }
            counts
        };
        let core = core_of(options()).await.expect("connects");
        let present = core.range(b"", None, 0, None, false).await.expect("reads");
        let ops = backup::difference(present.items, wanted());
        let laid = ops.len();
        // Cut off while it is laid down, and begun anew by somebody else.
        let first = lay_down(&core, ops[..500].to_vec()).await.expect("laid down");
        let next = member.connect(options()).await;
        assert_eq!(counts(&next).await, [100, 0, 501]);
        let second = lay_down(&core, ops).await.expect("laid down");
        assert!(decide(&core, first).await.is_err(), "the first one counts no more");
        assert_eq!(counts(&next).await, [100, 0, laid + 1]);
        // Cut off after the word, and when some writes have been made.
        decide(&core, second).await.expect("decided");
        let some = core.range(PUT, None, 10, None, false).await.expect("reads").items;
        let some = some.into_iter().filter_map(step).flatten().collect();
        core.txn(Txn { compare: Vec::new(), ops: some }).await.expect("written");
        let last = member.connect(options()).await;
        assert_eq!(counts(&last).await, [1, 1000, 0]);
        assert_eq!(contract::value(&last, "/old/7", None).await.as_deref(), Some("3"));
        assert_eq!(contract::value(&last, "/same", None).await.as_deref(), Some("1"));
        // And at one go.
        run(&core, BTreeMap::from([(contract::bytes("/end"), contract::bytes("1"))]))
            .await
            .expect("restored");
        assert_eq!(counts(&last).await, [0, 0, 0]);
        assert_eq!(contract::value(&last, "/end", None).await.as_deref(), Some("1"));
    }
}
