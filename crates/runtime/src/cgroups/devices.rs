//! Which devices a group's processes may use: the list of version 1, or a program of the kernel's packet-filter machine
//! attached to the version 2 group, where there is no list.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::resources::put;
use super::{Cgroups, Error, fail};

/// Making any node; null, zero, full, random, urandom, tty, console, ptmx, and terminals.
const DEFAULT_DEVICES: &[&str] = &[
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

impl Cgroups {
    /// Confines a container to the devices that every container has, and those in `extra` (`c 1:3 rwm`); `None` for all.
    pub fn confine_devices(&self, group: &str, extra: Option<&[String]>) -> Result<(), Error> {
        let Some(extra) = extra else { return Ok(()) };
        let rules = DEFAULT_DEVICES.iter().copied().chain(extra.iter().map(String::as_str));
        if let Some(dir) = self.v1_dir("devices", group) {
            put(&dir, "devices.deny", "a")?;
            for rule in rules {
                put(&dir, "devices.allow", rule)?;
            }
        } else if let Some(dir) = self.v2_dir(group) {
            let program = program(rules.filter_map(Rule::parse));
            let file = File::open(&dir).map_err(fail("open", &dir))?;
            attach(&file, &program).map_err(fail("confine the devices of", &dir))?;
        }
        Ok(())
    }
}

/// A line of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    kind: i32,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// `BPF_DEVCG_DEV_BLOCK` and `_CHAR`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

impl Rule {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let kind = match words.next()? {
            "b" => BLOCK,
            "c" => CHAR,
            _ => return None,
        };
        let (major, minor) = words.next()?.split_once(':')?;
        // `BPF_DEVCG_ACC_MKNOD`, `_READ` and `_WRITE`.
        let access = words.next()?.chars().fold(0, |bits, c| {
            bits | match c {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                _ => 0,
            }
        });
        let number = |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
        Some(Self { kind, major: number(major)?, minor: number(minor)?, access })
    }
}

/// One instruction of the machine: code, registers, offset, immediate.
fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let (o, i) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    [code, to | from << 4, o[0], o[1], i[0], i[1], i[2], i[3]]
}

/// A program that allows what one of `rules` allows. The kernel passes kind and access, major and minor number, in three
/// words of 32 bits (`struct bpf_cgroup_dev_ctx`).
fn program(rules: impl Iterator<Item = Rule>) -> Vec<[u8; 8]> {
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const COPY: u8 = 0xbc;
    const SET: u8 = 0xb4;
    const UNLESS_EQUAL: u8 = 0x55;
    const UNLESS_SAME: u8 = 0x5d;
    const EXIT: u8 = 0x95;
    let mut out = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        // Each test jumps to the next rule; how far is known when all of them are there.
        let mut tests = vec![(UNLESS_EQUAL, 2, 0, rule.kind)];
        let mut before = Vec::new();
        if rule.access != 7 {
            before = vec![instruction(COPY, 1, 3, 0, 0), instruction(AND, 1, 0, 0, rule.access)];
            tests.push((UNLESS_SAME, 1, 3, 0));
        }
        tests.extend(rule.major.map(|n| (UNLESS_EQUAL, 4, 0, n)));
        tests.extend(rule.minor.map(|n| (UNLESS_EQUAL, 5, 0, n)));
        out.extend(before);
        let count = tests.len() as i16;
        for (at, (code, to, from, immediate)) in tests.into_iter().enumerate() {
            out.push(instruction(code, to, from, count - 1 - at as i16 + 2, immediate));
        }
        out.push(instruction(SET, 0, 0, 0, 1));
        out.push(instruction(EXIT, 0, 0, 0, 0));
    }
    out.push(instruction(SET, 0, 0, 0, 0));
    out.push(instruction(EXIT, 0, 0, 0, 0));
    out
}

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

/// The start of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: i32, attributes: &T) -> io::Result<i64> {
    // SAFETY: the struct has the kernel's layout for this command, its length is given, and it lives through the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn attach(group: &File, program: &[[u8; 8]]) -> io::Result<()> {
    const PROG_LOAD: i32 = 5;
    const PROG_ATTACH: i32 = 8;
    const CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    let load = Load {
        kind: CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let loaded = bpf(PROG_LOAD, &load)?;
    // SAFETY: the call has just made this descriptor; the group keeps the program when it is closed.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded as i32) };
    let attach = Attach {
        target: group.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(PROG_ATTACH, &attach).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_parse() {
        assert_eq!(
            Rule::parse("c 1:* rm"),
            Some(Rule { kind: CHAR, major: Some(1), minor: None, access: 3 })
        );
        for text in ["", "x 1:1 r", "c 1 r", "c a:b r"] {
            assert_eq!(Rule::parse(text), None);
        }
    }

    /// A process that enters a group of version 2 can then open what the list has, and nothing else.
    #[test]
    fn a_program_confines() {
        let cgroups = Cgroups::detect().unwrap();
        let only_v2 = Cgroups { v1: Vec::new(), ..cgroups.clone() };
        let group = format!("/carrack-test-devices-{}", std::process::id());
        only_v2.create(&group).unwrap();
        only_v2.confine_devices(&group, Some(&["c 10:200 r".to_owned()])).unwrap();
        let procs = only_v2.procs_files(&group);
        let mut shell = std::process::Command::new("/bin/sh");
        let script = format!(
            "echo $$ > {} && cat /dev/null && head -c1 /dev/zero > /dev/null && ! head -c1 /dev/kmsg 2> /dev/null",
            procs[0]
        );
        let status = shell.args(["-c", &script]).status().unwrap();
        only_v2.remove(&group).unwrap();
        assert!(status.success());
    }
}
