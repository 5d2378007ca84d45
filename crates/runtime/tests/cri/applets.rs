//! What runs inside of the test's containers.

use std::io::{Read, Write};

/// Their names, which become links in the image's `/bin`.
pub const NAMES: &[&str] = &[
    "true",
    "hold",
    "say",
    "fail",
    "copy",
    "eat",
    "mkdir",
    "state",
    "unshare",
    "serve-port",
    "connect",
    "link",
    "tmpfs",
];

/// Runs the program of that name; none for the test binary's own name.
pub fn run(name: &str, args: &[String]) -> Option<i32> {
    if !NAMES.contains(&name) {
        return None;
    }
    let arg = |n: usize| args.get(n).map(String::as_str).unwrap_or("");
    Some(match name {
        "hold" => loop {
            std::thread::park();
        },
        "say" => {
            print!("{}", arg(1).replace("\\n", "\n"));
            eprint!("{}", arg(2).replace("\\n", "\n"));
            0
        }
        "fail" => arg(1).parse().unwrap_or(1),
        "copy" => {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = std::io::stdin().read(&mut buffer) {
                std::io::stdout().write_all(&buffer[..n]).ok();
                std::io::stdout().flush().ok();
            }
            0
        }
        "eat" => {
            let bytes: usize = arg(1).parse().unwrap_or(0);
            let eaten = vec![1u8; bytes];
            println!("{}", eaten.iter().step_by(4096).map(|b| usize::from(*b)).sum::<usize>());
            std::thread::park();
            0
        }
        "mkdir" => match std::fs::create_dir(arg(1)) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(255),
        },
        "tmpfs" => {
            let flags = nix::mount::MsFlags::empty();
            match nix::mount::mount(Some("tmpfs"), arg(1), Some("tmpfs"), flags, None::<&str>) {
                Ok(()) => 0,
                Err(error) => error as i32,
            }
        }
        "unshare" => match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            Ok(()) => 0,
            Err(error) => error as i32,
        },
        "serve-port" => {
            let listener = std::net::TcpListener::bind(("0.0.0.0", arg(1).parse().unwrap_or(0))).unwrap();
            for stream in listener.incoming() {
                stream.unwrap().write_all(b"hello from the pod").ok();
            }
            0
        }
        "connect" => {
            let host = if arg(2).is_empty() { "127.0.0.1" } else { arg(2) };
            let Ok(port) = arg(1).parse::<u16>() else { return Some(2) };
            i32::from(std::net::TcpStream::connect((host, port)).is_err())
        }
        "link" => i32::from(std::fs::read(format!("/sys/class/net/{}/mtu", arg(1))).is_err()),
        "state" => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            for line in status.lines() {
                if ["Uid:", "Gid:", "Groups:", "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "NSpid:"]
                    .iter()
                    .any(|p| line.starts_with(p))
                {
                    println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
                }
            }
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            println!("hostname {}", host.trim());
            println!("cwd {}", std::env::current_dir().unwrap_or_default().display());
            for (key, value) in std::env::vars() {
                println!("env {key}={value}");
            }
            for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
                println!("mount {}", line.split(' ').skip(4).collect::<Vec<_>>().join(" "));
            }
            0
        }
        _ => 0,
    })
}
