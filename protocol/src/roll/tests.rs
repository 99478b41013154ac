use alloy::primitives::B256;

use super::*;
use crate::testing;
use crate::x402::ChannelConfig;

const NOW: Timestamp = Timestamp(1_790_000_000_000);

fn roll() -> (Roll, Clock) {
    let clock = Clock::manual(NOW);
    (Roll::new(testing::network(), clock.clone()), clock)
}

/// The `n`th channel's testimony of a seller.
fn said(seller: u8, n: u16, now: Timestamp) -> SignedTestimony {
    let mut salt = B256::ZERO;
    salt[..2].copy_from_slice(&n.to_be_bytes());
    let config = ChannelConfig {
        salt,
        ..testing::channel_config()
    };
    testing::testimony_of(seller, config, 8, now)
}

fn peer(n: u8) -> NodeId {
    testing::node_key(n).id()
}

/// Hears it and looks it up.
fn keep(roll: &Roll, said: SignedTestimony, claimed: u128) {
    let channel = said.testimony.channel;
    assert_eq!(roll.hear(said, peer(1)), Told::Fresh);
    roll.looked_up(channel, Amount::atoms(claimed));
}

#[test]
fn a_testimony_counts_and_travels_only_when_the_chain_shows_a_claim() {
    let (roll, clock) = roll();
    let (good, empty) = (said(1, 1, NOW), said(1, 2, NOW));
    assert_eq!(roll.hear(good.clone(), peer(1)), Told::Fresh);
    assert!(roll.heard().is_empty(), "not looked up yet");
    assert!(roll.page(0, 9).is_empty());
    assert_eq!(roll.next(), Some(good.testimony.channel));
    roll.looked_up(good.testimony.channel, Amount::atoms(5));
    assert_eq!(roll.heard()[0].claimed, Amount::atoms(5));
    assert_eq!(roll.page(0, 9), vec![good.clone()]);
    keep(&roll, empty.clone(), 0);
    assert_eq!(roll.page(0, 9), vec![good]);
    assert_eq!(
        roll.hear(empty.clone(), peer(2)),
        Told::Later,
        "not looked up twice"
    );
    clock.advance(EMPTY_FOR);
    assert_eq!(roll.hear(empty, peer(2)), Told::Fresh, "but later it is");
}

#[test]
fn a_later_word_takes_the_place_of_an_earlier_one_without_another_look() {
    let (roll, clock) = roll();
    keep(&roll, said(1, 1, NOW), 5);
    let later = NOW.plus(Duration::from_secs(60));
    clock.advance(Duration::from_secs(60));
    assert_eq!(roll.hear(said(1, 1, later), peer(2)), Told::Fresh);
    assert_eq!(roll.next(), None);
    assert_eq!(roll.heard()[0].testimony.testimony().until, later);
    assert_eq!(roll.hear(said(1, 1, NOW), peer(2)), Told::Old);
}

#[test]
fn a_stranger_cannot_fill_the_waiting_room() {
    let (roll, _clock) = roll();
    let most = u16::try_from(MAX_WAITING_PER_PEER).expect("small");
    for n in 0..most {
        assert_eq!(roll.hear(said(1, n, NOW), peer(1)), Told::Fresh);
    }
    assert_eq!(roll.hear(said(1, most, NOW), peer(1)), Told::Later);
    assert_eq!(roll.hear(said(1, most, NOW), peer(2)), Told::Fresh);
    assert_eq!(roll.waiting(), MAX_WAITING_PER_PEER + 1);
    // And whoever has brought many is not served before the others.
    let turns = [roll.next(), roll.next()];
    assert!(turns.contains(&Some(said(1, most, NOW).testimony.channel)));
}

#[test]
fn an_old_look_is_repeated() {
    let (roll, clock) = roll();
    keep(&roll, said(1, 1, NOW), 5);
    assert_eq!(roll.next(), None);
    clock.advance(RECHECK);
    let channel = roll.next().expect("it is time");
    roll.looked_up(channel, Amount::atoms(7));
    assert_eq!(roll.heard()[0].claimed, Amount::atoms(7));
    assert_eq!(roll.next(), None);
}

#[test]
fn money_pushes_out_less_money_of_the_same_seller() {
    let (roll, _clock) = roll();
    for n in 0..MAX_PER_SELLER {
        keep(&roll, said(1, u16::try_from(n).expect("small"), NOW), 10);
    }
    keep(&roll, said(2, 800, NOW), 1);
    keep(&roll, said(1, 900, NOW), 9);
    let count = |claimed: u128| {
        let heard = roll.heard();
        let such = heard
            .iter()
            .filter(|it| it.claimed == Amount::atoms(claimed));
        such.count()
    };
    assert_eq!((count(10), count(9), count(1)), (MAX_PER_SELLER, 0, 1));
    keep(&roll, said(1, 901, NOW), 11);
    assert_eq!((count(10), count(11)), (MAX_PER_SELLER - 1, 1));
}

#[test]
fn few_peers_that_fill_the_waiting_room_do_not_silence_the_others() {
    let (roll, _clock) = roll();
    let each = u16::try_from(MAX_WAITING_PER_PEER).expect("small");
    for n in 0..8_u8 {
        for m in 0..each {
            let it = said(1, u16::from(n) * each + m, NOW);
            assert_eq!(roll.hear(it, peer(n + 1)), Told::Fresh);
        }
    }
    assert_eq!(roll.waiting(), MAX_WAITING);
    let ours = said(1, 900, NOW);
    assert_eq!(roll.hear(ours.clone(), peer(20)), Told::Fresh);
    assert_eq!(roll.waiting(), MAX_WAITING, "in the place of another");
    let turns: Vec<_> = (0..9).filter_map(|_| roll.next()).collect();
    assert!(turns.contains(&ours.testimony.channel));
    assert_eq!(roll.hear(said(1, 901, NOW), peer(1)), Told::Later);
}

#[test]
fn turnover_with_one_seller_does_not_throw_out_what_is_said_of_others() {
    let mut state = State::default();
    let kept = |seller, n: usize, claimed| {
        let it = said(seller, u16::try_from(n).expect("small"), NOW);
        let channel = it.testimony.channel;
        let testimony = Arc::new(it.verify(&testing::network(), NOW).expect("good"));
        let claimed = Amount::atoms(claimed);
        let heard = Heard { testimony, claimed };
        (
            channel,
            Kept {
                heard,
                checked: NOW,
            },
        )
    };
    // Few signatures make the full roll: the same word under many names.
    let (small, little) = kept(1, 0, 1);
    state.kept.insert(small, little);
    let (_, rich) = kept(2, 1, 1_000_000);
    for n in 0..MAX_KEPT - 1 {
        let name = ChannelId(B256::from(alloy::primitives::U256::from(n)));
        let heard = rich.heard.clone();
        state.kept.insert(
            name,
            Kept {
                heard,
                checked: NOW,
            },
        );
    }
    let (_, richer) = kept(3, 2, 2_000_000);
    assert!(state.make_room(&richer), "of those that are many");
    assert!(state.kept.contains_key(&small), "however little it is");
    state
        .kept
        .insert(ChannelId(B256::repeat_byte(0xee)), richer);
    let (_, poor) = kept(4, 3, 1);
    assert!(state.make_room(&poor), "each seller has its share");
    assert!(state.kept.contains_key(&small));
}

#[test]
fn a_witness_cannot_be_heard_anew_every_moment() {
    let (roll, clock) = roll();
    keep(&roll, said(1, 1, NOW), 5);
    let changes = roll.changes();
    clock.advance(RENEWED);
    for ms in [1, 1_000, 59_999] {
        let soon = NOW.plus(Duration::from_millis(ms));
        assert_eq!(roll.hear(said(1, 1, soon), peer(1)), Told::Old);
    }
    assert_eq!(roll.changes(), changes);
    assert_eq!(
        roll.hear(said(1, 1, NOW.plus(RENEWED)), peer(1)),
        Told::Fresh
    );
}

#[test]
fn what_is_too_old_is_forgotten() {
    let (roll, clock) = roll();
    keep(&roll, said(1, 1, NOW), 5);
    clock.advance(LIFETIME);
    assert!(roll.heard().is_empty());
    assert!(roll.page(0, 9).is_empty());
    let changes = roll.changes();
    roll.sweep();
    assert_eq!(roll.changes(), changes + 1);
}

#[test]
fn a_forged_testimony_is_bad_and_waits_for_nothing() {
    let (roll, _clock) = roll();
    let mut forged = said(1, 1, NOW);
    forged.testimony.lines[0].failed = 1000;
    assert!(matches!(roll.hear(forged, peer(1)), Told::Bad(_)));
    assert_eq!(roll.next(), None);
}
