"""Every config key of labelled tasks, of several in a row, of prompts about them, and of methods of
fine-tuning once: the part of configs/default.py that language modelling leaves alone.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def task() -> ConfigDict:
    """Labelled examples to learn from."""
    task = ConfigDict()
    # Fine-tuning on labelled examples: "classification" (of a text or a pair), "regression",
    # "token_classification" (of every word), "extractive_qa" (a span of a text), "multiple_choice"
    # (one of several texts), "ranking" (a list of texts by relevance), "seq2seq" (a text from a
    # text) or "instruction" (what an assistant says). config.data.source is then files:PATTERN or
    # tfds:NAME, and config.objective is not looked at. "": none.
    task.name = ""
    # Of files: "csv", "tsv", "jsonl", "conll" or "conllu". "": by the file's ending.
    task.format = ""
    # Names of a table's columns. (): its first line has them.
    task.columns = ()
    # Columns that hold the text: one, or two for a pair. CoNLL's columns are tokens and tags
    # (in CoNLL-U of UPOS; xpos, lemmas and deprel are others).
    task.text = ("text",)
    # Column that holds the label.
    task.label = "label"
    # multiple_choice and ranking: the column with a list of texts, or several columns.
    task.choices = ("choices",)
    # multiple_choice: how labels are written: "index" (from 0), "number" (from 1), "letter" (from
    # A), "text" (of the choice) or "typed" (JSON's numbers from 0, and texts). "": index or typed,
    # whichever suits all examples of the run.
    task.choice_labels = ""
    # All labels, in order. (): those of the training examples, by the alphabet. Of two, F1 is the
    # second's.
    task.labels = ()
    # Source of the held-out examples. "": the source's own, or the share data.validation_fraction.
    task.validation_source = ""
    # Which hidden state stands for a text: "first", "last" or "mean"; or the first behind a layer,
    # as the classifiers of transformers have it, so that a checkpoint's own head can be taken:
    # "pooler_tanh" (BERT, ALBERT, RoBERTa), "pooler_relu" (DistilBERT), "pooler_gelu" (ELECTRA).
    task.pooling = "first"
    # token_classification: by which scheme tags mark entities: "iob1", "iob2", "ioe1", "ioe2",
    # "iobes", "bilou", or "none" (as parts of speech: words are judged). "": as the tags tell, said
    # in the log.
    task.tag_scheme = ""
    # token_classification: what stands between words; "" for Japanese.
    task.word_separator = " "
    # extractive_qa: tokens of the longest answer that can be said. At least 1. None: as many as the
    # longest training answer has, and at least 30.
    task.max_answer_length = placeholder(int)
    # extractive_qa: nothing is said where "no answer" is likelier than the likeliest span by more
    # than so many nats. Less says nothing more often; report.txt names the best for the held-out.
    task.no_answer_threshold = 0.0
    # extractive_qa: tokens by which windows over a long context overlap. At least 0.
    task.doc_stride = 64
    # instruction: how a conversation is written out, "plain" (a line for each role) or "chatml".
    # "": by the checkpoint's own chat_template, or else "plain".
    task.template = ""
    # seq2seq: tokens that an evaluation writes at most in answer to each held-out example, to be
    # measured by BLEU, chrF and ROUGE; it takes as many passes. 0: it writes nothing.
    task.max_new_tokens = 0
    # classification, regression, token_classification: short texts share rows of training, each
    # read as it is alone. A batch then has more of them: fewer steps for an epoch. (Conversations
    # always do.)
    task.packing = False
    # classification: batches have as many rows of every class.
    task.balanced = False
    # What tables rank by and early stopping watches. "": the task's first metric.
    task.metric = ""
    return task


def continual() -> ConfigDict:
    """Tasks that one model learns one after the other."""
    continual = ConfigDict()
    # Two or more tasks of one kind, in order: a source each, instead of config.data.source. Each is
    # a run of its own, in folder 1, 2, ... of the workdir, that starts from the one before; after
    # each, the held-out examples of all tasks are asked. (): one task, one run.
    continual.sources = ()
    # Share of every batch that is drawn from earlier tasks, 0 .. 1 (1 excluded). 0.25 to 0.75.
    continual.replay_fraction = 0.0
    # Training rows of each earlier task that are kept to be replayed. 0: all.
    continual.memory_size = 0
    # All tasks at once, in one run of as many steps as theirs together: what the others aim at.
    continual.joint = False
    # Which one a run is of, from 1. The chain sets it. 0: the whole chain.
    continual.stage = 0
    return continual


def prompt() -> ConfigDict:
    """Labelled examples to ask about."""
    prompt = ConfigDict()
    # Labelled examples that `eval` asks about, and nothing is trained on: files:PATTERN or
    # tfds:NAME, their held-out ones where they have any; config.task.label, .labels, .choices,
    # .format and .columns say what is where. "": none; `eval` then measures config.data's text.
    prompt.source = ""
    # How an example is written out: names of columns in braces, and {answer}, which is scored. What
    # stands behind it is read by encoders, and where the example is shown with its answer.
    prompt.template = "{text}\n{answer}"
    # The answers: a text for each of config.task.labels. (): every example has its own, in
    # config.task.choices.
    prompt.verbalizers = ()
    # Examples shown with their answers before each question; every question draws its own from the
    # seed. At least 0.
    prompt.num_shots = 0
    # Draws as many of each label.
    prompt.balanced = False
    # Source of what is shown. "": the training examples of prompt.source, or its other questions.
    prompt.shots_source = ""
    # Stands behind each shown example.
    prompt.shots_separator = "\n\n"
    # Divides an answer's log-likelihood: "none", "tokens" or "bytes". Without, short answers win.
    prompt.length_normalization = "none"
    # Texts that stand in for every column, such as "N/A" or "": what the model then says anyway is
    # taken off (contextual calibration). (): no calibration.
    prompt.content_free = ()
    # Encoders: "answer" hides the answer's tokens all at once, "token" one at a time
    # (pseudo-log-likelihood).
    prompt.mlm_scoring = "answer"
    return prompt


def finetuning() -> ConfigDict:
    """What fine-tuning adds and trains."""
    finetuning = ConfigDict()
    # What training changes: "full" (all parameters), or names of lm.finetuning.METHODS joined by
    # "+", such as "lora+head". All but "full" need init_from, and save only what they train.
    finetuning.method = "full"
    # Start from the adapter in this folder, as the package peft writes them, on the base that
    # init_from names; it also sets method (others may be named beside it) and options. "": none.
    finetuning.adapter_from = ""
    # Options of methods. None: the method's own default. Setting one that no chosen method has is
    # an error.
    finetuning.num_layers = placeholder(int)  # layers: how many of the last blocks; None is 1
    finetuning.rank = placeholder(int)  # lora, rslora, dora: inner size of an update; None is 8
    # scales it by alpha / rank, rslora by its root; None is 16
    finetuning.alpha = placeholder(float)
    # matrices that it moves; None is ("query", "value")
    finetuning.target_modules = placeholder(tuple)
    finetuning.adapter_dim = placeholder(int)  # adapter: inner width; None is 64
    # adapter: "houlsby" (None), "pfeiffer" or "parallel"
    finetuning.adapter_placement = placeholder(str)
    finetuning.num_virtual_tokens = placeholder(int)  # prompt, prefix: learned vectors; None is 20
    return finetuning
