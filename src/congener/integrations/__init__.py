"""Our losses and systems inside the training loops of others.

=============================================  ===================================================
module                                         what it is
=============================================  ===================================================
:mod:`congener.integrations.transformers`      terms for a ``Trainer``, also TRL's ``SFTTrainer``
:mod:`congener.integrations.lightning`         any system as a ``LightningModule``
:mod:`congener.integrations.sentence_transformers`  losses for a ``SentenceTransformerTrainer``
=============================================  ===================================================

Each imports its package, so import the module you need.
"""
