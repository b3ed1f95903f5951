//! Random operation sequences against the reference NAT of [`crate::testing::model`].

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_obeys_the_reference(operations in vec(any::<u8>(), 2..160)) {
        crate::testing::model::run(&operations);
    }

    /// The same without garbage, loss or resets, so that every byte has to arrive; with published ports and without.
    #[test]
    fn orderly_sequences_deliver_every_byte(
        setup in prop::sample::select(&[0u8, 8][..]),
        operations in vec((prop::sample::select(&[0u8, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 13][..]), 0x30u8..), 1..80)
    ) {
        let bytes: Vec<u8> = std::iter::once(setup)
            .chain(operations.into_iter().flat_map(|(operation, argument)| [operation, argument]))
            .collect();
        crate::testing::model::run(&bytes);
    }
}
