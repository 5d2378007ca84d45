use super::*;
use proptest::prelude::*;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

#[test]
fn a_message_comes_back_as_it_went_and_names_are_compressed() {
    let owner = name("Web.default.svc.cluster.local");
    let record = |data| Record { name: owner.clone(), ttl: 5, data };
    let message = Message {
        response: true,
        authoritative: true,
        answers: vec![
            record(Data::A(Ipv4Addr::new(10, 0, 0, 1))),
            record(Data::Aaaa("fd00::1".parse().unwrap())),
            record(Data::Txt(vec![b"1.1.0".to_vec()])),
            record(Data::Srv { priority: 0, weight: 50, port: 80, target: name("a.b") }),
            record(Data::Cname(name("x.Cluster.local"))),
            record(Data::Soa { primary: name("ns"), mailbox: name("hm"), serial: 7, times: [1, 2, 3, 4] }),
        ],
        ..Message::query(0x1234, owner.clone(), kind::ANY)
    };
    let bytes = message.encode();
    assert_eq!(Message::decode(&bytes).unwrap(), message);
    assert_eq!(bytes.windows(7).filter(|window| window == b"default").count(), 1);
    assert_eq!(owner.to_string(), "Web.default.svc.cluster.local.");
    assert_eq!(owner.lower(), "web.default.svc.cluster.local");
}

#[test]
fn refuses_pointers_that_go_in_circles_and_long_names() {
    let mut bytes = Message::query(1, name("a"), kind::A).encode();
    bytes[12] = 0xc0;
    bytes[13] = 12;
    assert_eq!(Message::decode(&bytes), Err(WireError::BadName));
    assert_eq!(Name::parse(&"a.".repeat(128)), None);
    assert_eq!(Name::parse("a..b"), None);
    assert_eq!(Name::parse(&"a".repeat(64)), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(message) = Message::decode(&bytes) {
            let _ = Message::decode(&message.encode()).expect("what was written can be read");
        }
    }
}
