"""The conformance suite: what every method must hold, each check a function that says what is wrong, or ""."""

from collections.abc import Callable

from dstbench.suite.checks import cost, counts, declared, grown, invariance
from dstbench.suite.checks.subject import Subject

CHECKS: dict[str, Callable[[Subject], str]] = {
    "hyper-parameters survive JSON": invariance.parameters_survive_json,
    "identity is stable": invariance.identity_is_stable,
    "density is on target": counts.density_is_on_target,
    "no layer is empty": counts.no_layer_is_empty,
    "counts are exact under ties": counts.counts_are_exact_under_ties,
    "counts are exact under zeros": counts.counts_are_exact_under_zeros,
    "masks are not edited": declared.masks_are_not_edited,
    "gradients are those declared": declared.gradients_are_those_declared,
    "unread weights have no influence": declared.unread_weights_have_no_influence,
    "nothing lives outside the masks": declared.nothing_lives_outside,
    "grown weights start as declared": grown.grown_weights_start_as_declared,
    "finish prunes nothing": declared.finish_prunes_nothing,
    "work outside the pass is charged": cost.work_outside_the_pass_is_charged,
    "every operation is counted": cost.every_operation_is_counted,
    "storages agree": invariance.storages_agree,
    "loss scale does not matter": invariance.loss_scale_does_not_matter,
    "accumulation does not matter": invariance.accumulation_does_not_matter,
    "names do not matter": invariance.names_do_not_matter,
    "odd networks train": invariance.odd_networks_train,
    "a GPU does the same": invariance.a_gpu_does_the_same,
}
REPORTS: dict[str, Callable[[Subject], str]] = {"overhead": cost.overhead}
