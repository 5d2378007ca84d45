use std::io::Write;

use tokio::sync::watch;

use super::*;

/// Alive while the channel says so.
struct Flag(watch::Receiver<bool>);

impl Alive for Flag {
    async fn alive(&mut self) -> bool {
        *self.0.borrow_and_update()
    }

    async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n\
2026-01-01T00:00:02.000000000Z stderr F two\n\
2026-01-01T00:00:03.000000000Z stdout P th\n\
2026-01-01T00:00:03.000000000Z stdout F ree\n";

async fn all(path: PathBuf, options: Options, alive: watch::Receiver<bool>) -> String {
    let (sender, mut receiver) = mpsc::channel(4);
    let reading = tokio::spawn(read(path, options, Flag(alive), sender));
    let mut text = String::new();
    while let Some(bytes) = receiver.recv().await {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    reading.await.expect("runs").expect("readable");
    text
}

#[tokio::test]
async fn options_choose_what_is_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("0.log");
    std::fs::write(&path, LOG).expect("written");
    let since = Some("2026-01-01T00:00:02Z".parse().expect("a time"));
    let cases = [
        (Options::default(), "one\ntwo\nthree\n"),
        (Options { tail: Some(2), ..Options::default() }, "three\n"),
        (Options { tail: Some(0), ..Options::default() }, ""),
        (Options { since, ..Options::default() }, "two\nthree\n"),
        (Options { limit: Some(5), ..Options::default() }, "one\nt"),
        (Options { only: Some(true), ..Options::default() }, "two\n"),
        (
            Options { timestamps: true, tail: Some(3), ..Options::default() },
            "2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:03.000000000Z three\n",
        ),
    ];
    let (_sender, alive) = watch::channel(false);
    for (options, expected) in cases {
        assert_eq!(all(path.clone(), options.clone(), alive.clone()).await, expected, "{options:?}");
    }
}

#[tokio::test]
async fn following_survives_rotation_and_ends_with_the_container() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("0.log");
    std::fs::write(&path, LOG).expect("written");
    let (alive, receiver) = watch::channel(true);
    let options = Options { follow: true, tail: Some(0), ..Options::default() };
    let (sender, mut lines) = mpsc::channel(4);
    let reading = tokio::spawn(read(path.clone(), options, Flag(receiver), sender));
    // The reader has opened the file once the first new line comes through; until then lines are added.
    let first = loop {
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("opened");
        writeln!(file, "2026-01-01T00:00:04.000000000Z stdout F four").expect("written");
        if let Ok(line) = tokio::time::timeout(Duration::from_millis(50), lines.recv()).await {
            break line;
        }
    };
    assert_eq!(first.as_deref(), Some(&b"four\n"[..]));
    std::fs::rename(&path, dir.path().join("0.log.old")).expect("renamed");
    std::fs::write(&path, "2026-01-01T00:00:05.000000000Z stdout F five\n").expect("written");
    let mut line = lines.recv().await;
    while line.as_deref() == Some(b"four\n") {
        line = lines.recv().await;
    }
    assert_eq!(line.as_deref(), Some(&b"five\n"[..]));
    alive.send_replace(false);
    assert_eq!(lines.recv().await, None);
    reading.await.expect("runs").expect("readable");
}
