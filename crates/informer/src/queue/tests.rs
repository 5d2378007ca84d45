use super::*;

#[tokio::test]
async fn a_key_waits_once_and_comes_back_if_added_while_worked_on() {
    let queue = Queue::<u32>::new();
    queue.add(1);
    queue.add(1);
    assert_eq!(queue.next().await, 1);
    queue.add(1);
    queue.add(2);
    assert_eq!(queue.next().await, 2);
    queue.done(&1);
    assert_eq!(queue.next().await, 1);
    queue.done(&1);
    assert!(queue.state.lock().ready.is_empty());
}

#[test]
fn the_earliest_delay_counts_and_back_off_doubles() {
    let queue = Queue::<u32>::default();
    let now = Instant::now();
    queue.add_after(1, Duration::from_secs(9));
    queue.add_after(1, Duration::from_secs(3));
    queue.add_after(1, Duration::from_secs(5));
    let mut state = queue.state.lock();
    assert!(state.promote(now).is_some());
    assert!(state.ready.is_empty());
    assert!(state.promote(now + Duration::from_secs(60)).is_none());
    assert_eq!(state.ready, [1]);
    drop(state);

    let delays: Vec<Duration> = (0..3).map(|_| queue.next_delay(&2)).collect();
    assert_eq!(delays, [5, 10, 20].map(Duration::from_millis));
    assert_eq!(queue.failures(&2), 3);
    queue.forget(&2);
    assert_eq!(queue.failures(&2), 0);
    for _ in 0..100 {
        queue.next_delay(&2);
    }
    assert_eq!(queue.next_delay(&2), LAST_RETRY);
}

#[tokio::test]
async fn the_work_is_counted_under_its_name() {
    let queue = Queue::<u32>::new();
    queue.add(1);
    queue.add(1);
    let shutdown = CancellationToken::new();
    let (tell, mut told) = tokio::sync::mpsc::channel(4);
    let worker = tokio::spawn(queue.clone().run("counted", 1, shutdown.clone(), move |key: u32| {
        let tell = tell.clone();
        async move {
            tell.send(()).await.expect("somebody listens");
            if key == 2 { Err("not yet") } else { Ok(None) }
        }
    }));
    told.recv().await.expect("worked on");
    queue.add(2);
    told.recv().await.expect("worked on");
    // It comes back after its back-off.
    told.recv().await.expect("worked on again");
    shutdown.cancel();
    worker.await.expect("ended");
    let mut text = String::new();
    exposition::write_shared(&mut text);
    let value = |series: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{series}{{name=\"counted\"}}")));
        let line = line.unwrap_or_else(|| panic!("no {series} in {text}"));
        line.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number")
    };
    // It may have come back once more.
    assert!(value("workqueue_adds_total") >= 3.0);
    assert!(value("workqueue_retries_total") >= 1.0);
    assert!(value("workqueue_work_duration_seconds_count") >= 3.0);
    assert!(value("workqueue_queue_duration_seconds_count") >= 3.0);
    assert_eq!(value("workqueue_unfinished_work_seconds"), 0.0);
    assert!(value("workqueue_depth") <= 1.0);
}
