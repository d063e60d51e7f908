//! Room for connections on which nobody has proven anything yet.
//!
//! Anybody may connect and then be silent. There are so many places, altogether and for each network. Whoever
//! comes when they are taken is let in all the same, and the one that has waited longest gives way: of the own
//! network when that one is full, else of the network that holds most places. So a flood of silence pushes
//! itself out, and somebody honest, who is through within moments, is not kept out. Nobody gives way in their
//! first second, nor while it is us who owe them something: a thousand devices that come back at once would
//! otherwise push each other out for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long everybody may take before they can be asked to give way.
const FIRST: Duration = Duration::from_secs(1);

/// How many may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub altogether: usize,
    /// From one source: an IPv4 address or an IPv6 /64.
    pub per_source: usize,
}

/// The places of one port.
#[derive(Clone, Debug)]
pub struct Waiting {
    bounds: Bounds,
    places: Arc<Mutex<Places>>,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: usize,
    sources: HashMap<IpAddr, Source>,
}

/// The places of one network.
#[derive(Debug, Default)]
struct Source {
    /// Those who can be asked to give way, oldest first.
    silent: BTreeMap<u64, Place>,
    /// Those who have said their part and wait for ours.
    spoken: BTreeSet<u64>,
}

impl Source {
    fn len(&self) -> usize {
        self.silent.len() + self.spoken.len()
    }

    fn oldest(&self) -> Option<u64> {
        self.silent.keys().next().copied()
    }

    /// Whether somebody here has had their time.
    fn yields(&self) -> bool {
        self.silent.first_key_value().is_some_and(|(_, place)| place.since.elapsed() >= FIRST)
    }
}

#[derive(Debug)]
struct Place {
    since: Instant,
    give_way: CancellationToken,
}

/// Which bound keeps somebody out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Altogether,
    Source,
}

impl Full {
    /// As metrics call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Altogether => "unproven",
            Self::Source => "unproven-per-source",
        }
    }
}

impl Waiting {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, places: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub fn taken(&self) -> usize {
        self.lock().taken
    }

    /// Takes a place; somebody else may have to give way for it.
    pub fn enter(&self, source: IpAddr) -> Result<Slot, Full> {
        let source = network(source);
        let mut places = self.lock();
        if places.sources.get(&source).is_some_and(|own| own.len() >= self.bounds.per_source) {
            if !places.push_out(source) {
                return Err(Full::Source);
            }
        } else if places.taken >= self.bounds.altogether {
            // The most, and of those the one that came first.
            let crowd = places
                .sources
                .iter()
                .filter(|(_, own)| own.yields())
                .max_by_key(|(_, own)| (own.len(), std::cmp::Reverse(own.oldest())))
                .map(|(crowd, _)| *crowd);
            if !crowd.is_some_and(|crowd| places.push_out(crowd)) {
                return Err(Full::Altogether);
            }
        }
        let number = places.next;
        places.next += 1;
        places.taken += 1;
        let (since, give_way) = (Instant::now(), CancellationToken::new());
        let place = Place { since, give_way: give_way.clone() };
        places.sources.entry(source).or_default().silent.insert(number, place);
        drop(places);
        Ok(Slot { waiting: self.clone(), source, number, since, give_way })
    }
}

impl Places {
    /// The oldest of a source gives way, unless it has only just come.
    fn push_out(&mut self, source: IpAddr) -> bool {
        let oldest = self.sources.get(&source).filter(|own| own.yields());
        let Some((number, place)) = oldest.and_then(|own| own.silent.first_key_value()) else { return false };
        place.give_way.cancel();
        let number = *number;
        self.leave(source, number);
        true
    }

    fn leave(&mut self, source: IpAddr, number: u64) {
        if let Some(own) = self.sources.get_mut(&source) {
            if own.silent.remove(&number).is_some() || own.spoken.remove(&number) {
                self.taken -= 1;
            }
            if own.len() == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

/// How soon those may come again who found no place: later, the more they are, so that they come no faster than
/// they can be taken in.
#[derive(Debug)]
pub struct Again {
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    turned_away: u32,
    before: u32,
}

/// Who is turned away counts for as long as this, and for as long once more.
const WINDOW: Duration = Duration::from_secs(10);
/// So many of them may come again in a second.
const A_SECOND: u32 = 300;
/// Nobody has to wait for longer; nor is anybody asked to come sooner.
const SOONEST: u32 = 5;
const LATEST: u32 = 300;

impl Default for Again {
    fn default() -> Self {
        Self { window: Mutex::new(Window { since: Instant::now(), turned_away: 0, before: 0 }) }
    }
}

impl Again {
    /// Somebody is turned away: seconds within which to come again, at a moment of their own.
    pub fn within(&self) -> u32 {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = window.since.elapsed();
        if passed >= WINDOW {
            let before = if passed < 2 * WINDOW { window.turned_away } else { 0 };
            *window = Window { since: Instant::now(), turned_away: 0, before };
        }
        window.turned_away = window.turned_away.saturating_add(1);
        (window.turned_away.max(window.before) / A_SECOND).clamp(SOONEST, LATEST)
    }
}

/// One place; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    waiting: Waiting,
    source: IpAddr,
    number: u64,
    since: Instant,
    give_way: CancellationToken,
}

impl Slot {
    /// When it was taken.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Cancelled when the place was given to somebody else: the connection is to be closed.
    pub fn give_way(&self) -> CancellationToken {
        self.give_way.clone()
    }

    /// They have said their part: from here on they keep their place until we have answered.
    pub fn keep(&self) {
        let mut places = self.waiting.lock();
        if let Some(own) = places.sources.get_mut(&self.source)
            && own.silent.remove(&self.number).is_some()
        {
            own.spoken.insert(self.number);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.waiting.lock().leave(self.source, self.number);
    }
}

/// One customer's worth of addresses: an IPv4 address, an IPv6 /64.
pub fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(altogether: usize, per_source: usize) -> impl Fn(&str) -> Result<Slot, Full> {
        let waiting = Waiting::new(Bounds { altogether, per_source });
        move |source| waiting.enter(source.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_counted_by_source_and_given_back() {
        let enter = places(3, 2);
        let first = enter("192.0.2.1").unwrap();
        let _second = enter("::ffff:192.0.2.1").unwrap();
        assert_eq!(enter("192.0.2.1").unwrap_err(), Full::Source);
        let _third = enter("2001:db8::1").unwrap();
        assert_eq!(enter("2001:db9::1").unwrap_err(), Full::Altogether);
        drop(first);
        let again = enter("2001:db8::ffff").unwrap();
        assert_eq!(enter("2001:db8::2").unwrap_err(), Full::Source);
        assert_eq!(again.waiting.lock().sources.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_longest_in_the_fullest_network_gives_way() {
        let enter = places(4, 3);
        let alone = enter("192.0.2.1").unwrap();
        let crowd: Vec<_> = (0..3).map(|_| enter("198.51.100.1").unwrap()).collect();
        assert_eq!(enter("203.0.113.1").unwrap_err(), Full::Altogether, "nobody has had their second yet");
        tokio::time::advance(FIRST).await;
        let honest = enter("203.0.113.1").unwrap();
        let gone = |slot: &Slot| slot.give_way().is_cancelled();
        assert!(gone(&crowd[0]) && !gone(&crowd[1]) && !gone(&alone) && !gone(&honest));
        // A source that is full pushes out its own.
        let enter = places(10, 2);
        let other = enter("192.0.2.1").unwrap();
        let (first, second) = (enter("198.51.100.1").unwrap(), enter("198.51.100.1").unwrap());
        tokio::time::advance(FIRST).await;
        let _third = enter("198.51.100.1").unwrap();
        assert!(gone(&first) && !gone(&second) && !gone(&other));
        // Who gave way and leaves gives back nothing twice.
        drop(first);
        assert_eq!(second.waiting.taken(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_that_renews_its_connections_all_the_time_shelters_nobody_else() {
        let enter = places(5, 3);
        let silent = enter("192.0.2.1").unwrap();
        tokio::time::advance(FIRST).await;
        // The fullest network, and nobody in it is old enough to give way.
        let renewed: Vec<_> = (0..3).map(|_| enter("198.51.100.1").unwrap()).collect();
        let _other = enter("203.0.113.1").unwrap();
        let _honest = enter("203.0.113.2").unwrap();
        assert!(silent.give_way().is_cancelled());
        assert!(renewed.iter().all(|slot| !slot.give_way().is_cancelled()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_more_are_turned_away_the_later_they_come_again() {
        let again = Again::default();
        assert_eq!(again.within(), SOONEST);
        let last = (1..6000).map(|_| again.within()).last();
        assert_eq!(last, Some(20), "six thousand at three hundred a second");
        tokio::time::advance(WINDOW).await;
        assert_eq!(again.within(), 20, "those of just now are still to come");
        tokio::time::advance(2 * WINDOW).await;
        assert_eq!(again.within(), SOONEST);
        assert_eq!((0..1_000_000).map(|_| again.within()).last(), Some(LATEST));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_our_answer_keeps_the_place() {
        let enter = places(3, 2);
        let (spoken, silent) = (enter("192.0.2.1").unwrap(), enter("192.0.2.1").unwrap());
        spoken.keep();
        tokio::time::advance(FIRST).await;
        let third = enter("192.0.2.1").unwrap();
        assert!(!spoken.give_way().is_cancelled() && silent.give_way().is_cancelled());
        // Kept places count, for the source and altogether.
        let (first, second) = (enter("198.51.100.1").unwrap(), enter("192.0.2.1"));
        assert_eq!(second.unwrap_err(), Full::Source);
        first.keep();
        third.keep();
        tokio::time::advance(FIRST).await;
        assert_eq!(enter("203.0.113.1").unwrap_err(), Full::Altogether);
        // Given back as any other.
        drop(spoken);
        enter("203.0.113.1").unwrap();
        // Who gave way cannot keep what is somebody else's by now.
        silent.keep();
        assert_eq!(silent.waiting.taken(), 2);
    }
}
