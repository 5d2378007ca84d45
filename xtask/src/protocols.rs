//! `cargo xtask protocols`: makes the gRPC types of CRI and of the node's plug-in interfaces anew from their .proto files.
//!
//! What comes out is committed, so that no build needs a protobuf compiler; the one used here (protox) is Rust as well.
//! Comments of the sources are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use prost_types::{DescriptorProto, FileDescriptorProto};

/// One module to make.
struct Module {
    /// Where it goes, below the project's top folder.
    to: &'static str,
    /// Its source, below the folder that `from` names.
    proto: &'static str,
    from: Source,
    /// Services to keep, with the messages that they reach; all of them where empty.
    services: &'static [&'static str],
    /// Whether `bytes` fields are shared pieces (`Bytes`) rather than owned vectors.
    shared_bytes: bool,
}

enum Source {
    Kubernetes,
    Csi,
    Project,
}

const KUBELET: &str = "staging/src/k8s.io/kubelet/pkg/apis";

const fn kubelet(to: &'static str, proto: &'static str) -> Module {
    Module { to, proto, from: Source::Kubernetes, services: &[], shared_bytes: false }
}

const MODULES: &[Module] = &[
    Module {
        to: "crates/cri/src/generated/images.rs",
        proto: "crates/cri/proto/images.proto",
        from: Source::Project,
        services: &[],
        shared_bytes: true,
    },
    Module {
        to: "crates/cri/src/generated/runtime.rs",
        proto: "staging/src/k8s.io/cri-api/pkg/apis/runtime/v1/api.proto",
        from: Source::Kubernetes,
        services: &[],
        shared_bytes: true,
    },
    Module {
        to: "crates/plugins/src/generated/csi.rs",
        proto: "csi.proto",
        from: Source::Csi,
        services: &["Identity", "Node"],
        shared_bytes: false,
    },
    kubelet("crates/plugins/src/generated/registration.rs", "pluginregistration/v1/api.proto"),
    kubelet("crates/plugins/src/generated/device.rs", "deviceplugin/v1beta1/api.proto"),
    kubelet("crates/plugins/src/generated/dra_v1.rs", "dra/v1/api.proto"),
    kubelet("crates/plugins/src/generated/dra_v1beta1.rs", "dra/v1beta1/api.proto"),
    kubelet("crates/plugins/src/generated/dra_health.rs", "dra-health/v1alpha1/api.proto"),
    kubelet("crates/plugins/src/generated/podresources.rs", "podresources/v1/api.proto"),
];

/// Makes all modules: `kubernetes` is Kubernetes' source tree, `csi` the folder of the CSI specification.
pub fn run(kubernetes: &Path, csi: &Path, root: &Path) -> Result<()> {
    for module in MODULES {
        let (include, proto) = match module.from {
            Source::Project => (root.to_owned(), module.proto.to_owned()),
            Source::Csi => (csi.to_owned(), module.proto.to_owned()),
            Source::Kubernetes if module.proto.starts_with("staging/") => {
                (kubernetes.to_owned(), module.proto.to_owned())
            }
            Source::Kubernetes => (kubernetes.join(KUBELET), module.proto.to_owned()),
        };
        make(module, &include, &proto, &root.join(module.to))
            .with_context(|| format!("making {}", module.to))?;
    }
    let files: Vec<&str> = MODULES.iter().map(|module| module.to).collect();
    super::run("rustfmt", &[&["--edition", "2024"], files.as_slice()].concat())
}

fn make(module: &Module, include: &Path, proto: &str, to: &Path) -> Result<()> {
    let mut set = protox::compile([include.join(proto)], [include])?;
    let file = set.file.last_mut().context("the compiler gives the file itself last")?;
    if !module.services.is_empty() {
        file.service.retain(|service| module.services.contains(&service.name()));
        prune(file);
    }
    file.source_code_info = None;
    // Enum, service and message options that are defined in the file itself are of no use to a client.
    file.extension.clear();
    let folder = tempfile::tempdir()?;
    let made = folder.path().join(format!("{}.rs", file.package()));
    let mut config = tonic_prost_build::Config::new();
    config.out_dir(folder.path());
    if module.shared_bytes {
        config.bytes(["."]);
    }
    tonic_prost_build::configure().out_dir(folder.path()).compile_fds_with_config(set, config)?;
    let text = std::fs::read_to_string(&made).with_context(|| format!("reading {}", made.display()))?;
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = code.fold(String::from("// @generated\n"), |text, line| text + line + "\n");
    std::fs::write(to, code).with_context(|| format!("writing {}", to.display()))
}

/// Leaves only the top-level messages and enums that the services reach.
fn prune(file: &mut FileDescriptorProto) {
    let package = format!(".{}.", file.package());
    let top = |name: &str| {
        name.strip_prefix(&package).map(|rest| rest.split('.').next().unwrap_or(rest).to_owned())
    };
    let messages: BTreeMap<String, &DescriptorProto> =
        file.message_type.iter().map(|message| (message.name().to_owned(), message)).collect();
    let methods = file.service.iter().flat_map(|service| &service.method);
    let mut wanted: Vec<String> =
        methods.flat_map(|method| [method.input_type(), method.output_type()]).filter_map(top).collect();
    let mut reached = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if reached.insert(name.clone())
            && let Some(message) = messages.get(&name)
        {
            let mut types = Vec::new();
            field_types(message, &mut types);
            wanted.extend(types.iter().filter_map(|name| top(name)));
        }
    }
    file.message_type.retain(|message| reached.contains(message.name()));
    file.enum_type.retain(|one| reached.contains(one.name()));
}

fn field_types(message: &DescriptorProto, into: &mut Vec<String>) {
    into.extend(message.field.iter().filter_map(|field| field.type_name.clone()));
    for nested in &message.nested_type {
        field_types(nested, into);
    }
}
