//! The page pool: places, sharing, copies on write, accounting.

use scheduler::{KvShape, PAGE, PageCopy, Pages};

fn pool(layers: &[usize], pages: usize) -> Pages {
    Pages::new(KvShape { layers: layers.to_vec(), every_row: false, by_seed: false }, pages)
}

#[test]
fn tokens_fill_pages_in_order_in_every_layer() {
    let mut pages = pool(&[2, 1], 8);
    let table = pages.table();
    assert_eq!(pages.needed(&table, 0, 17), 4);
    assert_eq!(pages.append(&table, 0, 10).unwrap(), []);
    assert_eq!((pages.free(), pages.count(&table, 0), pages.count(&table, 1)), (6, 10, 0));
    assert_eq!(pages.append(&table, 0, 7).unwrap(), []);
    for layer in 0..2 {
        let list = pages.list(&table, 0, layer);
        assert_eq!(list.len(), 2);
        assert_eq!(pages.place(&table, 0, layer, 3), list[0] * PAGE as u32 + 3);
        assert_eq!(pages.place(&table, 0, layer, 16), list[1] * PAGE as u32);
    }
    assert_ne!(pages.list(&table, 0, 0), pages.list(&table, 0, 1));
    assert_eq!((pages.used_by_tier(), pages.held(&table)), ([4, 0].as_slice(), 4));
    pages.release(table);
    assert_eq!((pages.free(), pages.used_by_tier()), (8, [0, 0].as_slice()));
    pages.check([]).unwrap();
}

#[test]
fn a_shared_page_is_written_in_place_by_the_first_and_copied_by_the_others() {
    let mut pages = pool(&[1], 8);
    let first = pages.table();
    pages.append(&first, 0, 21).unwrap();
    let shared = pages.snapshot(&first);
    let (second, third) = (pages.resume(&shared), pages.resume(&shared));
    let tail = pages.list(&first, 0, 0)[1];
    // Whoever comes first may still find the slot free: the bound is for the others.
    assert_eq!(pages.needed(&second, 0, 1), 1);
    assert_eq!(pages.append(&second, 0, 1).unwrap(), []);
    assert_eq!(pages.list(&second, 0, 0)[1], tail);
    for table in [&first, &third] {
        let copies = pages.append(table, 0, 1).unwrap();
        let to_page = pages.list(table, 0, 0)[1];
        assert_eq!(copies, [PageCopy { from_page: tail, to_page, tokens: 5 }]);
        assert_ne!(to_page, tail);
        // The copy is its own now.
        assert_eq!(pages.append(table, 0, 1).unwrap(), []);
    }
    assert_eq!(pages.list(&first, 0, 0)[0], pages.list(&third, 0, 0)[0]);
    assert_eq!(pages.used_by_tier(), [4]);
    pages.check([&shared]).unwrap();
    for table in [first, second, third] {
        pages.release(table);
    }
    assert_eq!((pages.cached(), pages.free()), (2, 6));
    pages.drop_shared(shared);
    assert_eq!((pages.cached(), pages.free()), (0, 8));
    // Two copies were made beside the two pages of the first.
    assert_eq!(pages.most_held(), 4);
    pages.check([]).unwrap();
}

#[test]
fn the_last_holder_writes_over_what_others_left() {
    let mut pages = pool(&[1], 2);
    let first = pages.table();
    pages.append(&first, 0, 3).unwrap();
    let shared = pages.snapshot(&first);
    pages.append(&first, 0, 4).unwrap();
    pages.release(first);
    let second = pages.resume(&shared);
    assert_eq!(pages.needed(&second, 0, 1), 1);
    pages.drop_shared(shared);
    assert_eq!(pages.needed(&second, 0, 1), 0);
    assert_eq!(pages.append(&second, 0, 1).unwrap(), []);
    // What is shared from here on knows what is written from here on.
    let shared = pages.snapshot(&second);
    let third = pages.resume(&shared);
    assert_eq!(pages.append(&third, 0, 1).unwrap(), []);
    assert_eq!(pages.append(&second, 0, 1).unwrap().len(), 1);
    pages.check([&shared]).unwrap();
}

#[test]
fn two_holders_are_enough_for_a_copy() {
    // Two views, and nobody else.
    let mut pages = pool(&[1], 8);
    let first = pages.table();
    pages.append(&first, 0, 5).unwrap();
    let shared = pages.snapshot(&first);
    let second = pages.resume(&shared);
    pages.drop_shared(shared);
    let page = pages.list(&first, 0, 0)[0];
    assert_eq!(pages.append(&second, 0, 1).unwrap(), []);
    let copies = pages.append(&first, 0, 1).unwrap();
    assert_eq!(
        copies,
        [PageCopy { from_page: page, to_page: pages.list(&first, 0, 0)[0], tokens: 5 }]
    );
    assert_eq!(pages.list(&second, 0, 0), [page]);
    // A view and a stretch, whose rows somebody went on from.
    let mut pages = pool(&[1], 8);
    let first = pages.table();
    pages.append(&first, 0, 3).unwrap();
    let shared = pages.snapshot(&first);
    pages.append(&first, 0, 4).unwrap();
    let longer = pages.snapshot(&first);
    pages.release(first);
    let second = pages.resume(&shared);
    pages.drop_shared(shared);
    let page = pages.list(&second, 0, 0)[0];
    let copies = pages.append(&second, 0, 1).unwrap();
    assert_eq!(
        copies,
        [PageCopy { from_page: page, to_page: pages.list(&second, 0, 0)[0], tokens: 3 }]
    );
    pages.check([&longer]).unwrap();
}

#[test]
fn a_full_pool_changes_nothing_and_says_so() {
    let mut pages = pool(&[2, 0], 3);
    let table = pages.table();
    pages.append(&table, 0, 16).unwrap();
    let full = pages.append(&table, 0, 1).unwrap_err();
    assert_eq!(
        full.to_string(),
        "tier 0 needs 2 fresh unit pages, 1 are free: release, evict or preempt first"
    );
    assert_eq!((pages.count(&table, 0), pages.free()), (16, 1));
    // A tier without layers counts and takes nothing.
    assert_eq!(pages.needed(&table, 1, 100), 0);
    assert_eq!(pages.append(&table, 1, 100).unwrap(), []);
    assert_eq!(pages.counts(&table), [16, 100]);
    pages.check([]).unwrap();
}

#[test]
fn the_recount_notices_a_forgotten_stretch() {
    let mut pages = pool(&[1], 2);
    let table = pages.table();
    pages.append(&table, 0, 1).unwrap();
    let shared = pages.snapshot(&table);
    let imbalance = pages.check([]).unwrap_err();
    assert_eq!(
        (imbalance.what, imbalance.found, imbalance.expected),
        ("stretches of a page", 1, 0)
    );
    pages.check([&shared]).unwrap();
}

#[test]
fn a_shape_knows_its_worst_case() {
    let shape = KvShape { layers: vec![4, 2, 2, 0], every_row: false, by_seed: false };
    assert_eq!([0, 1, 16, 17].map(|tokens| shape.pages_for(tokens)), [0, 8, 8, 16]);
    assert_eq!(
        KvShape { layers: vec![usize::MAX, 2], every_row: false, by_seed: false }.pages_for(100),
        usize::MAX
    );
    let each = |every_row| KvShape { layers: vec![1; 4], every_row, by_seed: false };
    assert_eq!([0, 1, 3].map(|depth| each(false).tiers_of(depth)), [1, 2, 4]);
    assert_eq!([0, 1, 3].map(|depth| each(true).tiers_of(depth)), [1, 4, 4]);
    let at_once = KvShape { layers: vec![6, 0], every_row: false, by_seed: false };
    assert_eq!([0, 1, 3].map(|depth| at_once.tiers_of(depth)), [1, 2, 2]);
}
