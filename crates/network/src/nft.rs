//! Commits transactions on nftables tables, each as one netlink batch: all of it comes into force at once or nothing does.

mod encode;

use crate::error::{Error, Result};
use crate::netlink::Socket;
use encode::Encoder;
use nix::errno::Errno;
use ruleset::nft::Statement;
use ruleset::{Ruleset, Step, Transaction};

/// Puts a ruleset in force in the current network namespace, whatever its table holds now.
pub fn apply(ruleset: &Ruleset) -> Result<()> {
    commit(&Transaction::replace(ruleset))
}

/// Commits a transaction in the current network namespace. An empty one costs nothing.
pub fn commit(transaction: &Transaction) -> Result<()> {
    if transaction.is_empty() {
        return Ok(());
    }
    let mut encoder = Encoder::new(&transaction.table);
    for step in &transaction.steps {
        encoder.step(step);
    }
    let (messages, origin) = encoder.finish();
    let step = |index: usize| origin.get(index).and_then(|step| transaction.steps.get(*step));
    let mut failed = None;
    let result = Socket::open(libc::NETLINK_NETFILTER)?.batch(messages, |index| {
        failed = Some(index);
        format!("change table {}: {}", transaction.table, step(index).map_or("commit".into(), describe))
    });
    match result {
        Err(error) if error.is(Errno::ENOENT) || error.is(Errno::EOPNOTSUPP) => {
            let feature = match failed.and_then(step) {
                Some(Step::AddRule(_, rule)) => rule.iter().find_map(rare_feature),
                Some(Step::AddTable) => Some("nf_tables with the inet family (CONFIG_NF_TABLES_INET)"),
                Some(Step::AddChain(_, Some(hook))) if hook.kind == ruleset::nft::HookKind::Nat => {
                    Some("nft_chain_nat (CONFIG_NFT_NAT)")
                }
                _ => None,
            };
            match feature {
                Some(feature) => {
                    tracing::debug!(%error, "nftables refused");
                    Err(Error::Unsupported { feature, consequence: "services cannot be routed" })
                }
                None => Err(error),
            }
        }
        other => other,
    }
}

fn describe(step: &Step) -> String {
    match step {
        Step::AddTable => "add the table".into(),
        Step::DeleteTable => "delete the table".into(),
        Step::AddChain(name, _) => format!("add chain {name}"),
        Step::AddSet(name, _) => format!("add set {name}"),
        Step::AddElements(name, _) => format!("add elements to {name}"),
        Step::DeleteElements(name, _) => format!("delete elements of {name}"),
        Step::FlushChain(name) => format!("flush chain {name}"),
        Step::AddRule(name, rule) => format!("add rule {rule:?} to chain {name}"),
        Step::DeleteChain(name) => format!("delete chain {name}"),
        Step::DeleteSet(name) => format!("delete set {name}"),
    }
}

/// The kernel option behind a statement that not every kernel has.
fn rare_feature(statement: &Statement) -> Option<&'static str> {
    Some(match statement {
        Statement::SourceIsLocal | Statement::DestinationIsLocal => "nft_fib_inet (CONFIG_NFT_FIB_INET)",
        Statement::New | Statement::Translated => "nft_ct (CONFIG_NFT_CT)",
        Statement::Masquerade => "nft_masq (CONFIG_NFT_MASQ)",
        Statement::Reject | Statement::Reset => "nft_reject_inet (CONFIG_NFT_REJECT_INET)",
        Statement::DnatTo(..) | Statement::DnatByMap { .. } => "nft_nat (CONFIG_NFT_NAT)",
        Statement::Dispatch { key, .. }
            if key.iter().any(|load| matches!(load, ruleset::nft::Load::Random(_))) =>
        {
            "nft_numgen (CONFIG_NFT_NUMGEN)"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
