//! Which processors and which memory a container is given: the machine's layout, the static policies for processors and
//! memory, and the policies that bring their wishes and those of devices together. Pure but for reading the machine from
//! a sysfs folder that is passed in. Rules: KEP-3570 (CPU manager), KEP-1769 (memory manager), KEP-693 (topology manager).

#![forbid(unsafe_code)]

pub mod cpus;
mod cpuset;
pub mod hints;
mod machine;
pub mod memory;
mod take;

pub use cpuset::{CpuSet, ParseError};
pub use machine::{Cpu, Machine, MachineError, NumaNode};

/// An option of a policy that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("{name}: unknown option; there are {known}")]
    Unknown { name: String, known: String },
    #[error("{name}: {value:?} is no {wanted}")]
    Value { name: String, value: String, wanted: &'static str },
    #[error("{0} and {1} cannot be used together")]
    Both(&'static str, &'static str),
}

pub(crate) fn flag(name: &str, value: &str) -> Result<bool, OptionError> {
    value.parse().map_err(|_| OptionError::Value {
        name: name.to_owned(),
        value: value.to_owned(),
        wanted: "truth value (true or false)",
    })
}
