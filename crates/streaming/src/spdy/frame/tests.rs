use proptest::prelude::*;

use super::*;

fn decode(decoder: &mut Decoder, mut input: BytesMut) -> Result<Vec<Event>, ProtocolError> {
    let mut events = Vec::new();
    while let Some(event) = decoder.next(&mut input)? {
        events.push(event);
    }
    Ok(events)
}

#[test]
fn frames_are_read_back() {
    let headers = vec![("streamtype".to_owned(), "data".to_owned()), ("port".to_owned(), "80".to_owned())];
    let frames = [
        Frame::SynStream { stream: 1, headers: headers.clone() },
        Frame::Data { stream: 1, payload: Bytes::from_static(b"hello"), fin: false },
        Frame::WindowUpdate { stream: 1, delta: 5 },
        Frame::Ping(3),
        Frame::Data { stream: 1, payload: Bytes::new(), fin: true },
        Frame::Reset { stream: 1, status: 5 },
        Frame::GoAway { last: 1 },
    ];
    let (mut out, mut compressor) = (BytesMut::new(), Compressor::default());
    for frame in &frames {
        encode(frame, &mut compressor, &mut out);
    }
    let events = decode(&mut Decoder::default(), out).expect("valid frames");
    assert_eq!(
        events,
        [
            Event::SynStream { stream: 1, fin: false, headers },
            Event::Data { stream: 1, payload: Bytes::from_static(b"hello"), fin: false },
            Event::WindowUpdate { stream: 1, delta: 5 },
            Event::Ping(3),
            Event::Data { stream: 1, payload: Bytes::new(), fin: true },
            Event::Reset { stream: 1 },
            Event::GoAway,
        ]
    );
}

#[test]
fn an_oversized_control_frame_is_refused_before_it_is_buffered() {
    let mut input = BytesMut::from(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff][..]);
    assert_eq!(
        Decoder::default().next(&mut input),
        Err(ProtocolError::Length { kind: 1, length: 0x00ff_ffff })
    );
}

proptest! {
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode(&mut Decoder::default(), BytesMut::from(&noise[..]));
    }

    #[test]
    fn control_frames_with_noisy_bodies_never_panic(kind in 0u16..12, body in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut input = BytesMut::new();
        input.put_u16(0x8003);
        input.put_u16(kind);
        input.put_u32(body.len() as u32);
        input.extend_from_slice(&body);
        let _ = decode(&mut Decoder::default(), input);
    }

    #[test]
    fn portions_do_not_matter(payload in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..40) {
        let (mut out, mut compressor) = (BytesMut::new(), Compressor::default());
        encode(&Frame::SynStream { stream: 1, headers: vec![("a".into(), "b".into())] }, &mut compressor, &mut out);
        encode(&Frame::Data { stream: 1, payload: Bytes::from(payload.clone()), fin: true }, &mut compressor, &mut out);
        let (mut decoder, mut input, mut got, mut finished) = (Decoder::default(), BytesMut::new(), Vec::new(), false);
        for portion in out.chunks(cut) {
            input.extend_from_slice(portion);
            while let Some(event) = decoder.next(&mut input).expect("valid frames") {
                if let Event::Data { payload, fin, .. } = event {
                    got.extend_from_slice(&payload);
                    finished |= fin;
                }
            }
        }
        prop_assert_eq!(got, payload);
        prop_assert!(finished);
    }
}
