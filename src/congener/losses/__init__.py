"""The losses: pure functions and modules, one file for each paper. ``__all__`` is the registry."""

from congener.losses.ab import ABLoss, ab_loss
from congener.losses.adain import AdaINLoss, adain_loss
from congener.losses.adain_parts import adain, channel_statistics
from congener.losses.adain_statistics import AdaINStatisticsLoss, adain_statistics_loss
from congener.losses.at import ATLoss, at_loss
from congener.losses.backward_kd import backward_divergence
from congener.losses.base import Loss
from congener.losses.cckd import CCKDLoss, cckd_loss
from congener.losses.ckd import CKDLoss, ckd_loss
from congener.losses.compress import CompRessLoss, compress_loss
from congener.losses.crd import crd_loss
from congener.losses.crd_memory import crd_contrast_index, crd_update
from congener.losses.crd_module import CRDLoss
from congener.losses.cskd import CSKDLoss, cskd_loss
from congener.losses.cskd_parts import cskd_batch_loss, cskd_class_loss, cswt_loss
from congener.losses.cswt import cswt_temperatures
from congener.losses.cwd import CWDLoss, cwd_loss
from congener.losses.detection_kd import DetectionKDLoss, detection_kd_loss
from congener.losses.dist import DISTLoss, dist_loss
from congener.losses.dist_parts import dist_inter_loss, dist_intra_loss
from congener.losses.dkd import DKDLoss, dkd_loss
from congener.losses.dkd_parts import nckd_loss, tckd_loss
from congener.losses.embedding_mse import EmbeddingMSELoss, embedding_mse_loss
from congener.losses.fgd import FGDLoss, fgd_loss
from congener.losses.fgd_boxes import fgd_foreground
from congener.losses.fgfi import FGFILoss, fgfi_loss
from congener.losses.fgfi_parts import fgfi_near_object
from congener.losses.fitnets import FitNetsLoss, hint_loss
from congener.losses.fsp import FSPLoss, fsp_loss
from congener.losses.ft import FTLoss, ft_loss
from congener.losses.gkd import GKDLoss, gkd_loss
from congener.losses.hard_label import HardLabelLoss, hard_label_loss
from congener.losses.ikd import IKDLoss, ikd_loss
from congener.losses.iusp import IUSPLoss, iusp_loss
from congener.losses.kd import KDLoss, kd_loss
from congener.losses.ld import LDLoss, ld_loss
from congener.losses.ld_parts import ld_class_loss
from congener.losses.lskd import LSKDLoss, lskd_loss
from congener.losses.lskd_parts import standardize_logits
from congener.losses.margin_mse import MarginMSELoss, margin_mse_loss
from congener.losses.mgd import MGDLoss, mgd_loss
from congener.losses.mgd_parts import mgd_visible
from congener.losses.mhkd import MHKDLoss, mhkd_loss
from congener.losses.mhkd_parts import head_cross_entropy_loss
from congener.losses.mixed_labels import mixed_cross_entropy_loss
from congener.losses.mixkd import MixKDLoss, mixkd_loss
from congener.losses.mixkd_parts import mixkd_distance_loss
from congener.losses.mlld import MLLDLoss, mlld_loss
from congener.losses.mlld_parts import mlld_batch_loss, mlld_class_loss
from congener.losses.mm_hashing import MMHashingLoss, mm_hashing_loss
from congener.losses.mm_hashing_parts import binary_codes
from congener.losses.multilabel_kd import MultiLabelKDLoss, multilabel_kd_loss
from congener.losses.nd import NDLoss, nd_loss
from congener.losses.nd_parts import class_means
from congener.losses.neighbour_correlation import (
    NeighbourCorrelationLoss,
    neighbour_correlation_loss,
)
from congener.losses.nst import NSTLoss, nst_loss
from congener.losses.ofd import OFDLoss, ofd_loss
from congener.losses.ofd_parts import ofd_margin, partial_l2_loss
from congener.losses.pkt import PKTLoss, pkt_loss
from congener.losses.reviewkd import ReviewKDLoss, hcl_loss
from congener.losses.rkd import RKDLoss, rkd_loss
from congener.losses.rkd_parts import rkd_angle_loss, rkd_distance_loss
from congener.losses.score_kl import ScoreKLLoss, score_kl_loss
from congener.losses.simkd import SimKDLoss, simkd_loss
from congener.losses.simkd_parts import SimKDProjector
from congener.losses.skew_kl import SkewKLLoss, skew_kl_loss
from congener.losses.soft_cross_entropy import SoftCrossEntropyLoss, soft_cross_entropy_loss
from congener.losses.sp import SPLoss, sp_loss
from congener.losses.srrl import SRRLLoss, srrl_loss
from congener.losses.srrl_parts import srrl_feature_loss, srrl_logit_loss
from congener.losses.sskd import SSKDLoss, sskd_loss
from congener.losses.sskd_head import sskd_head_loss
from congener.losses.sskd_parts import SSKDTransformedLoss, sskd_transformed_loss
from congener.losses.stkd import STKDLoss, stkd_loss
from congener.losses.total_variation import TotalVariationLoss, total_variation_loss
from congener.losses.uld import ULDLoss, uld_loss
from congener.losses.vid import VIDLoss, vid_loss

__all__ = [
    "ABLoss",
    "ATLoss",
    "AdaINLoss",
    "AdaINStatisticsLoss",
    "CCKDLoss",
    "CKDLoss",
    "CRDLoss",
    "CSKDLoss",
    "CWDLoss",
    "CompRessLoss",
    "DISTLoss",
    "DKDLoss",
    "DetectionKDLoss",
    "EmbeddingMSELoss",
    "FGDLoss",
    "FGFILoss",
    "FSPLoss",
    "FTLoss",
    "FitNetsLoss",
    "GKDLoss",
    "HardLabelLoss",
    "IKDLoss",
    "IUSPLoss",
    "KDLoss",
    "LDLoss",
    "LSKDLoss",
    "Loss",
    "MGDLoss",
    "MHKDLoss",
    "MLLDLoss",
    "MMHashingLoss",
    "MarginMSELoss",
    "MixKDLoss",
    "MultiLabelKDLoss",
    "NDLoss",
    "NSTLoss",
    "NeighbourCorrelationLoss",
    "OFDLoss",
    "PKTLoss",
    "RKDLoss",
    "ReviewKDLoss",
    "SPLoss",
    "SRRLLoss",
    "SSKDLoss",
    "SSKDTransformedLoss",
    "STKDLoss",
    "ScoreKLLoss",
    "SimKDLoss",
    "SimKDProjector",
    "SkewKLLoss",
    "SoftCrossEntropyLoss",
    "TotalVariationLoss",
    "ULDLoss",
    "VIDLoss",
    "ab_loss",
    "adain",
    "adain_loss",
    "adain_statistics_loss",
    "at_loss",
    "backward_divergence",
    "binary_codes",
    "cckd_loss",
    "channel_statistics",
    "ckd_loss",
    "class_means",
    "compress_loss",
    "crd_contrast_index",
    "crd_loss",
    "crd_update",
    "cskd_batch_loss",
    "cskd_class_loss",
    "cskd_loss",
    "cswt_loss",
    "cswt_temperatures",
    "cwd_loss",
    "detection_kd_loss",
    "dist_inter_loss",
    "dist_intra_loss",
    "dist_loss",
    "dkd_loss",
    "embedding_mse_loss",
    "fgd_foreground",
    "fgd_loss",
    "fgfi_loss",
    "fgfi_near_object",
    "fsp_loss",
    "ft_loss",
    "gkd_loss",
    "hard_label_loss",
    "hcl_loss",
    "head_cross_entropy_loss",
    "hint_loss",
    "ikd_loss",
    "iusp_loss",
    "kd_loss",
    "ld_class_loss",
    "ld_loss",
    "lskd_loss",
    "margin_mse_loss",
    "mgd_loss",
    "mgd_visible",
    "mhkd_loss",
    "mixed_cross_entropy_loss",
    "mixkd_distance_loss",
    "mixkd_loss",
    "mlld_batch_loss",
    "mlld_class_loss",
    "mlld_loss",
    "mm_hashing_loss",
    "multilabel_kd_loss",
    "nckd_loss",
    "nd_loss",
    "neighbour_correlation_loss",
    "nst_loss",
    "ofd_loss",
    "ofd_margin",
    "partial_l2_loss",
    "pkt_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "score_kl_loss",
    "simkd_loss",
    "skew_kl_loss",
    "soft_cross_entropy_loss",
    "sp_loss",
    "srrl_feature_loss",
    "srrl_logit_loss",
    "srrl_loss",
    "sskd_head_loss",
    "sskd_loss",
    "sskd_transformed_loss",
    "standardize_logits",
    "stkd_loss",
    "tckd_loss",
    "total_variation_loss",
    "uld_loss",
    "vid_loss",
]
