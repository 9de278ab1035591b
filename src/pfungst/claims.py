"""What Pfungst claims, and what stands behind it: one table, printed by ``pfungst claims``.

*Verified* means compared with something that we did not write (a library, published outputs, finite
differences, a formula computed by hand in the test). *Measured* means that the effect was measured on the
data named, by the test or by the benchmark named, without such a comparison. What is neither is *not
verified*, and said to be. `missing` says what a reader might take for granted and should not. Nothing here is
computed; a test holds that every named test exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["verified", "measured", "not-verified"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Claim:
    """One method or finding.

    Attributes:
        area: explanation, detector, measure, finding, mitigation, model, data or tool.
        name: the method or finding; names that users type stand in it as they are typed.
        verified: against what that we did not write; empty for nothing.
        measured: on what; empty for nothing.
        missing: what has not been shown.
        tests: ``path::name`` below the project that show it, or a benchmark's path.
    """

    area: str
    name: str
    verified: str = ""
    measured: str = ""
    missing: str = ""
    tests: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        return "verified" if self.verified else "measured" if self.measured else "not-verified"


_R, _A, _S, _M = "tests/relevance/", "tests/anomaly/", "tests/spurious/", "tests/measure/"
_ZENNIT = f"{_R}test_zennit.py::test_heatmap_equals_zennits"
_FAITHFUL = "benchmarks/faithfulness.py"

CLAIMS: tuple[Claim, ...] = (
    # --- explanations ------------------------------------------------------------------------------------
    Claim("explanation", "LRP composites epsilon_plus, epsilon_plus_flat, epsilon_gamma_box, epsilon_alpha2_beta1, "
          "epsilon_alpha2_beta1_flat, paper_resnet", "zennit 0.5 with its canonizers: VGG-11-BN, ResNet-18, ResNet-50",
          "faithfulness of some of them on ResNet-18 trained on Imagenette",
          "real weights: the comparison with zennit has random ones", (_ZENNIT, _FAITHFUL)),
    Claim("explanation", "LRP composites lrp_zero, gradient", "captum's InputXGradient and IntegratedGradients, torch.autograd", "",
          "", (f"{_R}test_captum.py::test_input_x_gradient_equals_lrp_zero",
               f"{_R}test_captum.py::test_integrated_gradients_equal_lrp_zero_without_biases",
               f"{_R}test_architectures.py::test_piecewise_linear_networks_are_gradient_times_input")),
    Claim("explanation", "LRP composite epsilon_gamma", "ε rule by hand, bias leaves of the network's own graph",
          "torchvision, timm and transformers architectures with random weights; faithfulness on ResNet-18", "no library has it under this name",
          (f"{_R}test_engine.py::test_epsilon_by_hand_and_the_value_is_exact", f"{_R}test_architectures.py::test_score_is_accounted_for", _FAITHFUL)),
    Claim("explanation", "LRP composite epsilon_plus_wsquare", "", "conserves on every operation", "no comparison with another implementation",
          (f"{_R}test_engine.py::test_every_operation_conserves_and_keeps_its_value",)),
    Claim("explanation", "LRP composite transformer", "", "conserves on BERT, CLIP, ViT and Swin layouts with random weights",
          "faithfulness on a trained transformer", (f"{_R}test_families.py::test_huggingface_bert",
                                                   f"{_R}test_families.py::test_clip_vision_transformer")),
    Claim("explanation", "LRP composite mamba", "the rules of Jafari et al. 2024 by autograd with detached factors, by hand", "",
          "faithfulness on a trained Mamba", (f"{_R}test_scans_and_experts.py::test_mamba_is_explained_by_the_rules_of_its_paper",)),
    Claim("explanation", "composite auto: rules chosen by the network's operations", "", "conserves on torchvision and timm families with random weights",
          "that what conserves is also the most faithful", (f"{_R}test_auto.py::test_the_choice_follows_from_the_operations_and_conserves",
                                                           f"{_R}test_auto.py::test_torchvision_networks_keep_their_rules", _FAITHFUL)),
    Claim("explanation", "scores of whole architectures accounted for by inputs and constants", "the plain forward pass and leaves at the biases",
          "", "", (f"{_R}test_architectures.py::test_score_is_accounted_for", f"{_R}test_constants.py::test_inputs_and_constants_make_up_the_score")),
    Claim("explanation", "GradCAM for any layout of positions", "captum and numpy", "faithfulness on ResNet-18 trained on Imagenette", "",
          (f"{_R}test_gradcam.py::test_resnet", f"{_R}test_gradcam.py::test_vision_transformers", _FAITHFUL)),
    Claim("explanation", "recurrent layers, Fourier transforms, functions without a rule are named", "cells written by hand; torch.autograd", "", "",
          (f"{_R}test_recurrent.py::test_layers_are_explained_as_their_cells_by_hand",
           f"{_R}test_fourier.py::test_linear_transforms_are_gradient_times_input",
           f"{_R}test_unseen.py::test_what_cannot_be_seen_is_named")),
    Claim("explanation", "frequency bands (DCT), pixels within bands, patches, tokens", "scipy.fft, zigzag of JPEG", "", "",
          (f"{_R}test_bases.py::test_dct_is_scipys", f"{_R}test_bases.py::test_bands_and_pixels_are_margins_of_the_joint_basis")),
    Claim("explanation", "BiLRP of a pair of inputs", "the published procedure: one zennit backward pass per neuron, ResNet-18", "",
          "real weights", ("tests/similarity/test_explainer.py::test_equals_the_published_procedure",
                           "tests/similarity/test_explainer.py::test_cosine_by_finite_differences")),
    Claim("explanation", "BiLRP from random directions, with its error bar", "exact products by hand; coverage over 300 draws", "", "",
          ("tests/similarity/test_sketch.py::test_unbiased_and_its_error_bar_covers",)),
    Claim("explanation", "relevance of detectors: distance and pooling in pixels, bands, both", "the definition, pair by pair; outputs of the published code",
          "", "faithfulness of anomaly maps", (f"{_A}test_explain.py::test_matches_the_definition", f"{_A}test_golden.py::test_relevance")),
    Claim("explanation", "heatmaps of a linear probe", "", "finds the region that the probe reads, by construction", "",
          ("tests/probes/test_heatmaps.py::test_finds_what_the_probe_reads",)),
    # --- detectors ---------------------------------------------------------------------------------------
    Claim("detector", "d2neighbors", "outputs of the published code (Kauffmann et al. 2025) on real magnetic tiles; SciPy's distances", "", "",
          (f"{_A}test_golden.py::test_scores_and_decisions", f"{_A}test_detectors.py::test_distances_are_scipys")),
    Claim("detector", "kde", "scikit-learn's KernelDensity; bandwidth by brute force", "", "",
          (f"{_A}test_detectors.py::test_gaussian_kde_is_the_density", f"{_A}test_detectors.py::test_loo_bandwidth_against_brute_force")),
    Claim("detector", "patchcore", "outputs of the published code; textbook coreset", "", "backbones with real weights",
          (f"{_A}test_patchcore_golden.py::test_tiles_without_coreset", f"{_A}test_patchcore.py::test_coreset_is_the_textbook_one")),
    Claim("detector", "one-class", "regularised Mahalanobis distance by hand", "letters backbone: unseen letters by nearest mean", "the published network",
          (f"{_A}test_family.py::TestDeepOneClass::test_score_is_the_regularised_mahalanobis_distance", f"{_A}test_family.py::test_letters_are_learnt")),
    Claim("detector", "autoencoder", "", "learns stripes; relevance is the squared residual", "real images; the published network",
          (f"{_A}test_family.py::TestAutoencoder::test_learns", f"{_A}test_family.py::TestAutoencoder::test_relevance_is_the_squared_residual")),
    Claim("detector", "bag", "mean of standardised scores, by hand", "", "",
          (f"{_A}test_family.py::TestBag::test_is_the_mean_of_standardised_scores",)),
    Claim("detector", "tiled", "", "finds a small defect in a large made image", "real photographs",
          (f"{_A}test_family.py::TestTiled::test_small_defect_in_a_large_image",)),
    Claim("detector", "fitted detectors of scikit-learn, PyOD and anomalib, explained", "their own scores; finite differences", "", "",
          (f"{_A}test_wrap.py::test_same_scores", f"{_A}test_wrap.py::test_explanation_against_finite_differences",
           f"{_A}test_wrap.py::TestAnomalib::test_scores_and_conservation")),
    # --- measures ----------------------------------------------------------------------------------------
    Claim("measure", "AUROC, F1, FNR, FPR, balanced accuracy, intervals, t-tests", "scikit-learn and SciPy", "", "",
          (f"{_M}test_measure.py::test_auroc_is_scikit_learns", f"{_M}test_measure.py::test_decisions_are_scikit_learns",
           f"{_M}test_measure.py::test_bootstrap_covers_as_scipys_does", f"{_M}test_measure.py::test_degradation_p_is_scipys")),
    Claim("measure", "provenance: a score that follows where the data come from", "η² of a regression", "does not cry wolf on drawn scores", "",
          (f"{_M}test_measure.py::test_eta_squared_is_the_regressions", f"{_M}test_measure.py::test_provenance_does_not_cry_wolf")),
    Claim("measure", "faithfulness: patches replaced in the order of relevance against random order, insertion, deletion",
          "areas of a linear model by numpy; the best order is known", "ResNet-18 trained on Imagenette; random maps do not beat random",
          "that one replacement is right: the ranking of methods depends on it",
          (f"{_M}test_faithfulness.py::test_areas_of_a_linear_model_are_those_by_hand",
           f"{_M}test_faithfulness.py::test_a_map_that_knows_nothing_does_not_beat_random", _FAITHFUL)),
    Claim("measure", "weight randomisation: whether maps change with the weights", "SciPy's rank correlation", "ResNet-18 trained on Imagenette", "",
          (f"{_M}test_faithfulness.py::test_weight_randomisation_tells_a_map_of_the_model_from_one_of_the_image", _FAITHFUL)),
    Claim("measure", "gradient × input and integrated gradients as baselines", "captum", "", "",
          (f"{_M}test_faithfulness.py::test_baselines_are_captums",)),
    Claim("measure", "Clever Hans score", "cosine and AUROC by hand", "", "", (f"{_M}test_measure.py::test_clever_hans_score",)),
    Claim("measure", "spurious score: mAUC, and the average precision of the published code", "outputs of the published code (Neuhaus et al. 2023)", "",
          "the published networks and images", (f"{_S}test_golden.py::test_spurious_score",)),
    Claim("measure", "agreement of labellers, Cohen's κ", "scikit-learn", "", "",
          ("tests/label/test_label_agreement.py::test_agreement_and_kappa_are_those_of_scikit_learn",)),
    # --- components of classifiers -----------------------------------------------------------------------
    Claim("explanation", "neural PCA: components, α, top images", "outputs of the published code; scikit-learn's PCA", "", "",
          (f"{_S}test_golden.py::test_eigenvalues_vectors_and_means", f"{_S}test_golden.py::test_alpha",
           f"{_S}test_npca.py::test_small_side_is_used_and_matches_scikit_learn")),
    Claim("explanation", "feature visualisation (NPFV) by APGD", "steps of the published code on a toy network", "",
          "readable only on adversarially robust networks", (f"{_S}test_golden.py::test_visualisation_follows_the_published_ascent",)),
    Claim("explanation", "neuron baseline (Singla and Feizi)", "outputs of the published code", "", "", (f"{_S}test_golden.py::test_neuron_ranking",)),
    Claim("explanation", "counterfactuals by guided diffusion", "", "a small diffusion model of digits", "photographs",
          (f"{_S}test_look.py::test_counterfactuals_raise_confidence_and_alpha_and_stay_close",)),
    # --- findings ----------------------------------------------------------------------------------------
    Claim("finding", "anomaly, clever-hans: high frequencies that deployment removes", "", "rendered parts, where the camera's grain is planted by construction",
          "a real detector in deployment", ("tests/mitigate/test_layers.py::test_cutoff_finds_the_defects_band_and_mends_the_detector",)),
    Claim("finding", "anomaly, provenance: the score follows the acquisition session", "", "real magnetic tiles; nobody planted it; planted copies",
          "", ("tests/audit/test_anomaly_audit.py::test_real_tiles_follow_the_session",
               "tests/audit/test_anomaly_audit.py::test_a_score_that_follows_the_session_is_told")),
    Claim("finding", "anomaly, sound, fragile and unfit", "", "clean models: share of false alarms", "",
          ("tests/audit/test_anomaly_audit.py::test_a_detector_of_planted_defects_is_fit", "benchmarks/truth.py")),
    Claim("finding", "similarity, clever-hans: a pasted mark that a probe reads as a class", "", "a small CLIP of tagged digits, and one that never saw the tag",
          "a published encoder", ("tests/audit/test_similarity_planted.py::test_a_planted_tag_is_found_and_mended",
                                  "tests/audit/test_similarity_planted.py::test_an_encoder_that_never_saw_the_tag_is_not_accused")),
    Claim("finding", "similarity, provenance, fragile, unfit and sound", "", "made results on both sides of each rule; clean models: share of false alarms", "",
          ("tests/audit/test_similarity_verdict.py::test_a_part_missing_is_not", "benchmarks/truth.py")),
    Claim("finding", "classifier: components called spurious or suspicious", "", "planted artefacts in small networks; clean ones: false alarms",
          "large networks: what it finds there is looked at, not counted", ("tests/audit/test_classifier_audit.py::test_the_planted_component_is_found_proven_and_switched_off",
                                                                            "tests/audit/test_classifier_audit.py::test_a_clean_model_raises_no_such_finding",
                                                                            "benchmarks/truth.py")),
    # --- mitigations -------------------------------------------------------------------------------------
    Claim("mitigation", "blur inside the model", "torchvision's and SciPy's Gaussian", "rendered parts", "",
          ("tests/mitigate/test_layers.py::test_blur_is_torchvisions_and_scipys",)),
    Claim("mitigation", "lowpass with a cut-off proposed from relevance", "DCT by hand", "made scenes of blobs and grain", "real detectors",
          ("tests/mitigate/test_layers.py::test_low_pass_keeps_what_is_below",
           "tests/mitigate/test_layers.py::test_cutoff_finds_the_defects_band_and_mends_the_detector")),
    Claim("mitigation", "prune: feature maps switched off", "responses and masks by hand", "a small CLIP of tagged digits", "a published encoder",
          ("tests/mitigate/test_pruning.py::test_pruning_by_hand", "tests/audit/test_similarity_planted.py::test_a_planted_tag_is_found_and_mended")),
    Claim("mitigation", "SpuFix, on the model and transferred to another", "outputs of the published code", "planted features removed in part and whole", "",
          (f"{_S}test_golden.py::test_spufix_on_the_original_model", f"{_S}test_golden.py::test_spufix_transferred",
           f"{_S}test_reference.py::test_a_planted_feature_is_removed_whole_and_by_the_mean_only_in_part")),
    Claim("mitigation", "bagging of standardised detectors mends a Clever Hans effect", missing="that it does; only the arithmetic of the bag is tested"),
    # --- models, data, tools -----------------------------------------------------------------------------
    Claim("model", "published checkpoints: VISSL, Barlow Twins, OpenAI CLIP, PubMedCLIP", "", "files of the same layout, made in the test",
          "the published weights themselves", ("tests/encoders/test_checkpoints.py::test_vissl",
                                              "tests/encoders/test_checkpoints.py::test_openai_rn50_state_dict_and_pubmedclip")),
    Claim("model", "sentence encoders", "sentence-transformers, with real weights", "", "", ("tests/encoders/test_text.py::test_equals_sentence_transformers",)),
    Claim("model", "linear probes", "scikit-learn with the papers' settings", "", "", ("tests/probes/test_linear.py::test_logistic_regression_is_the_papers",
                                                                                      "tests/probes/test_linear.py::test_svm_is_the_papers")),
    Claim("model", "SimCLR, Barlow Twins and CLIP losses", "the papers' sums by hand", "", "", ("tests/encoders/test_training.py::test_nt_xent_by_the_papers_sum",
                                                                                              "tests/encoders/test_training.py::test_barlow_twins_by_the_papers_sum")),
    Claim("data", "conditions: resizers, crop, jpeg, noise, blur, sharpen, saltpepper, quantize, dither, logo",
          "OpenCV, Pillow, torchvision, SciPy", "", "", ("tests/conditions/test_condition.py::test_opencv_resizers_are_opencvs",
                                                        "tests/conditions/test_condition.py::test_jpeg_is_pillows",
                                                        "tests/conditions/test_logo.py::test_defaults_are_the_papers")),
    Claim("data", "the two resizers reproduce the published scores", "outputs of the published code on real tiles", "", "",
          ("tests/data/test_prepared.py::test_the_two_resizers_give_the_published_scores",)),
    Claim("data", "COVID collections: splits of the paper", "", "tables of the real shape; real radiographs", "the whole collections",
          ("tests/data/test_covid.py::test_the_papers_split_sizes", "tests/data/test_covid.py::test_real_radiographs")),
    Claim("tool", "interrupted work resumes to the same result, also after kill -9", "", "audits, pools, labels", "",
          ("tests/integration/test_cli.py::test_kill_9_and_resume_gives_the_same_result", "tests/pool/test_pool_score.py::test_kill_9_ten_times_gives_the_same_scores",
           "tests/label/test_label_server.py::test_kill_9_under_load_loses_no_acknowledged_answer")),
    Claim("tool", "search of a pool", "the sort of all α", "CIFAR-10", "millions of images", ("tests/pool/test_pool_search.py::test_search_is_the_sort_of_all_alphas",
                                                                                            "tests/integration/test_pool_cifar.py::test_the_whole_way")),
    Claim("tool", "what is kept belongs to the model and images at hand", "", "every cached kind, with changed weights and replaced images", "",
          ("tests/features/test_stale.py::test_embeddings_of_a_changed_encoder_are_computed_again",)),
)  # fmt: skip


def choose(status: str | None = None) -> list[Claim]:
    """Claims of a status, or all, in their order.

    Raises:
        ConfigError: there is no such status.
    """
    from pfungst.errors import ConfigError
    from pfungst.suggest import suggest

    if status not in (None, *STATUSES):
        raise ConfigError(f"no claim has the status {status!r}", suggest(str(status), STATUSES, "statuses"))
    return [c for c in CLAIMS if status in (None, c.status)]
