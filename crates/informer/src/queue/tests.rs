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
