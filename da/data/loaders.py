"""Source and target streams zipped into one `Batch`, and the validation samples.

Every number that decides a training sample (which file, scale, crop, flip) is a pure function of the seed
and the sample's number in the run (see `sampler`), so batches do not depend on workers, ranks or
interruptions.
"""

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PositiveInt,
    Tag,
    model_validator,
)
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision import tv_tensors

from da.config import Section, UserError, expanded
from da.data import folders, processes
from da.data.frames import Frames, require_upright
from da.data.sampler import GlobalBatches, derive_seed, few_of, mixed_index, sample_index
from da.data.statistics import class_pixels
from da.data.transforms import DomainConfig, FolderConfig, Geometry
from da.labels import DEFAULT, IGNORE, LabelSpace, label_space
from da.tune import tune

T = TypeVar("T")


def _as_tuple(given: DomainConfig | tuple[DomainConfig, ...]) -> tuple[DomainConfig, ...]:
    if given == ():
        raise ValueError("an empty list; give at least one entry")
    return given if isinstance(given, tuple) else (given,)


# One entry, or a list of them that share a stream by their weights; in files one stands without the list. What stands
# in brackets is left out of error messages.
if TYPE_CHECKING:
    Domains = tuple[DomainConfig, ...]
else:
    Domains = Annotated[
        Annotated[DomainConfig, Tag("(one)")] | Annotated[tuple[DomainConfig, ...], Tag("(several)")],
        Discriminator(lambda given: "(several)" if isinstance(given, list | tuple) else "(one)"),
        AfterValidator(_as_tuple),
        PlainSerializer(lambda entries: entries[0] if len(entries) == 1 else entries),
    ]


class DataConfig(Section):
    """The `data:` section."""

    classes: LabelSpace = label_space(DEFAULT)  # a name in da/classes, or a YAML file like those
    source: Domains  # labelled images to train on
    target: Domains | None = None  # unlabelled images to adapt to; its labels are never read
    val: FolderConfig  # labelled images to score on; the evaluation protocol decides the input size
    batch_size: PositiveInt = 1  # images per domain and update, over all processes and micro-batches
    workers: int = Field(2, ge=0, le=1024)  # loader processes per training process; no effect on the batches
    jitter: float = Field(0.0, ge=0, le=0.5)  # colour jitter strength, applied on the device
    blur: float = Field(0.0, ge=0, le=1)  # probability of Gaussian blur, applied on the device

    @model_validator(mode="after")
    def _target_without_labels(self) -> "DataConfig":
        if any(entry.labels for entry in self.target or ()):
            raise ValueError("target: labels: none of the target's is ever read; leave it out")
        return self


class Batch(NamedTuple):
    src_image: torch.Tensor  # (B, 3, H, W) uint8 RGB
    src_label: torch.Tensor  # (B, H, W) uint8 trainIds, 255 = ignore
    tgt_image: torch.Tensor | None  # (B, 3, H', W') uint8 RGB; None where the method uses no target
    src_names: list[str]
    tgt_names: list[str]
    tgt_label: torch.Tensor | None = None  # (B, H', W') uint8 trainIds: pseudo labels, where one learns from them

    @property
    def names(self) -> list[str]:
        """Every image in the batch, for messages and counting."""
        return self.src_names + self.tgt_names

    def first(self) -> "Batch":
        """The first image of each domain alone."""
        return Batch._make(None if part is None else part[:1] for part in self)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; does not wait for the copy."""
        return self._replace(
            src_image=self.src_image.to(device, non_blocking=True),
            src_label=self.src_label.to(device, non_blocking=True),
            tgt_image=None if self.tgt_image is None else self.tgt_image.to(device, non_blocking=True),
            tgt_label=None if self.tgt_label is None else self.tgt_label.to(device, non_blocking=True),
        )


class ValSample(NamedTuple):
    name: str
    image: torch.Tensor  # (3, H, W) uint8 RGB
    label: torch.Tensor  # (H', W') uint8 trainIds, 255 = ignore


class _Item(NamedTuple):
    name: str
    image: torch.Tensor
    label: torch.Tensor | None


def resolve_root(config: FolderConfig) -> Path:
    """The folder of a domain; renders the embedded pair where `root` is `miniature`.

    Raises:
        UserError: the miniature has no such data set.
    """
    if config.root != "miniature":
        return expanded(config.root)
    if config.dataset not in folders.EMBEDDED:
        raise UserError(
            f"root: miniature: the embedded pair is gta5 and cityscapes; {config.dataset} needs a real folder"
        )
    from da.data import miniature

    return miniature.ensure() / config.dataset


def samples_of(config: DomainConfig, with_labels: bool) -> list[folders.Sample]:
    """What an entry of a stream draws from.

    Raises:
        UserError: no such root or split, labels are missing, or there are fewer than `labels`.
    """
    root = resolve_root(config)
    samples = folders.find(config.dataset).index(root, config.split, with_labels)
    if not config.labels:
        return samples
    if config.labels > len(samples):
        raise UserError(f"data.source.labels: {config.labels} of {len(samples)} images of {root}; give fewer")
    return [samples[i] for i in few_of(len(samples), config.labels, config.labels_draw)]


def class_shares(config: DataConfig) -> torch.Tensor:
    """Each class's share of the labelled pixels of the source, (classes,) float32, sums to 1; of several entries each
    counts by its weight. The labels are read once (`statistics`).

    Raises:
        UserError: a label cannot be read, or none holds a class.
    """
    total = np.zeros(len(config.classes))
    for entry in config.source:
        pixels = class_pixels(entry.dataset, samples_of(entry, True), config.classes).sum(0)
        total += entry.weight * pixels / max(pixels.sum(), 1)
    if not total.any():
        raise UserError(f"data.source: no pixel has a label of {config.classes.name}; see `data check`")
    return torch.from_numpy(total / total.sum()).float()


def class_frequencies(config: DataConfig) -> torch.Tensor:
    """Each class's share of the labelled pixels of the source's images that hold it, (classes,) float32, 0 for a class
    that none holds; entries and labels as in `class_shares`."""
    own, around = np.zeros((2, len(config.classes)))
    for entry in config.source:
        pixels = class_pixels(entry.dataset, samples_of(entry, True), config.classes)  # (images, classes)
        scale = entry.weight / max(pixels.sum(), 1)
        own += scale * pixels.sum(0)
        around += scale * ((pixels > 0) * pixels.sum(1, keepdims=True)).sum(0)
    return torch.from_numpy(own / np.where(around > 0, around, 1)).float()


class _Entry:
    """The samples of one entry of a stream."""

    def __init__(self, config: DomainConfig, classes: LabelSpace, with_labels: bool) -> None:
        root = resolve_root(config)
        self.samples = samples_of(config, with_labels)
        # One resize serves `size` and a random `scale`: only without the latter is the frame's size a fixed one.
        size = config.size if config.scale == (1.0, 1.0) else None
        self.frames = Frames(config.dataset, root, size, classes)
        self.geometry = Geometry(config)

    def require_a_label(self, title: str) -> None:
        """
        Raises:
            UserError: no pixel of any label file belongs to a class.
        """
        if not any(folders.has_labels(self.frames.label(sample)) for sample in self.samples):
            of = f"{self.frames.dataset} at {self.samples[0].image.parent}"
            raise UserError(f"{title}: no pixel of {of} has a label of {self.frames.classes.name}; see `data check`")


class _Stream:
    """One domain's endless, augmented stream."""

    def __init__(
        self, configs: tuple[DomainConfig, ...], classes: LabelSpace, name: str, seed: int, with_labels: bool
    ) -> None:
        self.name, self.seed = name, seed
        self.entries = [_Entry(config, classes, with_labels) for config in configs]
        self.weights = tuple(config.weight for config in configs)
        if with_labels:
            for entry in self.entries:
                entry.require_a_label(f"data.{name}")

    def item(self, n: int) -> _Item:
        """Sample number `n` of the run."""
        if len(self.entries) == 1:
            entry, name, at = self.entries[0], self.name, n
        else:
            which, at = mixed_index(self.seed, self.name, n, self.weights)
            entry, name = self.entries[which], f"{self.name} {which}"
        sample = entry.samples[sample_index(self.seed, name, at, len(entry.samples))]
        image, label = entry.frames.read(sample)
        parts = [tv_tensors.Image(image), *([] if label is None else [tv_tensors.Mask(label)])]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, self.name, "geometry", n))
            parts = entry.geometry(parts)
        return _Item(sample.name, parts[0], parts[1] if len(parts) == 2 else None)


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) array -> (3, H, W) view; torchvision resizes this memory order fastest."""
    return torch.from_numpy(image).permute(2, 0, 1)


class _TrainingData(Dataset[Any]):
    """Sample number n of the source and, where there is a target, of the target."""

    def __init__(self, streams: list[_Stream]) -> None:
        self.streams = streams

    def __getitem__(self, n: int) -> list[_Item] | UserError:
        try:
            return [stream.item(n) for stream in self.streams]
        except UserError as error:  # raised by a worker it would arrive wrapped in a traceback
            return error


class _ValData(Dataset[Any]):
    def __init__(self, dataset: str, classes: LabelSpace, samples: list[folders.Sample]) -> None:
        self.dataset, self.classes, self.samples = dataset, classes, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> ValSample | UserError:
        sample = self.samples[i]
        try:
            image = folders.read_image(sample.image)
            if sample.label:
                train_ids = folders.find(self.dataset).read_label(sample.label, self.classes)
                require_upright(sample.label, train_ids.shape[:2], image.shape[:2])
            else:
                train_ids = np.full(image.shape[:2], IGNORE, np.uint8)
            return ValSample(sample.name, _to_tensor(image), torch.from_numpy(train_ids))
        except UserError as error:
            return error


def _collate(items: list[list[_Item] | UserError]) -> Batch | UserError:
    rows = []
    for item in items:
        if isinstance(item, UserError):
            return item
        rows.append(item)
    try:
        src, *tgt = [list(column) for column in zip(*rows)]
        return Batch(
            src_image=_stack([i.image for i in src], src),
            src_label=_stack([_label(i) for i in src], src),
            tgt_image=_stack([i.image for i in tgt[0]], tgt[0]) if tgt else None,
            src_names=[i.name for i in src],
            tgt_names=[i.name for i in tgt[0]] if tgt else [],
            tgt_label=_stack([i.label for i in tgt[0] if i.label is not None], tgt[0])
            if tgt and tgt[0][0].label is not None
            else None,
        )
    except UserError as error:
        return error


def _label(item: _Item) -> torch.Tensor:
    """(H, W) uint8; 255 where there is none."""
    return torch.full(item.image.shape[-2:], IGNORE, dtype=torch.uint8) if item.label is None else item.label


def _stack(tensors: list[torch.Tensor], items: list[_Item]) -> torch.Tensor:
    for tensor, item in zip(tensors, items):
        if tensor.shape != tensors[0].shape:
            sizes = f"{tuple(tensors[0].shape[-2:])} and {tuple(tensor.shape[-2:])}"
            names = f"{items[0].name} and {item.name}"
            raise UserError(
                f"images {names} of one batch have sizes {sizes} (height, width); set a crop or batch_size: 1"
            )
    return torch.stack(tensors)


# Workers are forked from a server that has loaded this module and nothing else: this process has threads, and a fork
# that meets one of them inside a lock leaves a worker that waits for ever.
WORKERS = multiprocessing.get_context("forkserver")
WORKERS.set_forkserver_preload([__name__])

# A signal to the whole job reaches the loading processes too, and the main process still needs them for the update it
# finishes: they leave these to it.
JOB_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

CHECK_EVERY = 5.0  # seconds of waiting after which it is seen whether the loading processes live
PATIENCE = 30 * 60.0  # seconds without a batch after which the disk counts as gone
# File descriptors of this process: one for each tensor of a batch that is here or on its way, and the pipes.
DESCRIPTORS, DESCRIPTORS_PER_WORKER = 12, 7

# How torch begins to say that a worker died; the second where a thread copies batches to pinned memory, on a GPU.
WORKER_DIED = ("DataLoader worker", "Pin memory thread exited unexpectedly")


class _Items(_MultiProcessingDataLoaderIter):
    """Batches from loading processes, waited for, but not for ever."""

    empty = 0  # times in a row that `CHECK_EVERY` seconds brought nothing

    def _try_get_data(self, timeout: float = CHECK_EVERY) -> tuple[bool, Any]:
        there, data = super()._try_get_data(timeout)
        self.empty = 0 if there else self.empty + 1
        if self.empty * timeout >= PATIENCE:
            raise UserError(
                f"no batch came from the data loading processes for {PATIENCE / 60:.0f} minutes; see whether the disk "
                "with the data answers, and the same command goes on"
            )
        return there, data


class _Loader(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return _Items(self) if self.num_workers else super()._get_iterator()


class Loaded(Generic[T]):
    """What a DataLoader yields, with the UserErrors that its workers met raised here, in the main process."""

    def __init__(self, dataset: Dataset[Any], workers: int, **options: Any) -> None:
        self.loader = _Loader(
            dataset,
            num_workers=workers,
            multiprocessing_context=WORKERS if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else every new iterator would advance the global one
            **options,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[T]:
        items = self._start()
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except (OSError, EOFError, RuntimeError) as error:
                if str(error).startswith("Caught "):  # raised by the data set, in a living worker
                    raise
                if self.loader.num_workers and (lack := processes.shortage(error)):
                    raise UserError(lack) from error
                if isinstance(error, ConnectionError | EOFError | FileNotFoundError):
                    raise RuntimeError("DataLoader worker was gone before its batch had come over") from error
                raise
            if isinstance(item, UserError):
                raise item
            yield item

    def _start(self) -> Iterator[Any]:
        workers = self.loader.num_workers
        if not workers:
            return iter(self.loader)
        processes.require_descriptors(DESCRIPTORS + workers * DESCRIPTORS_PER_WORKER)
        try:
            _start_servers()
            return iter(self.loader)
        except (OSError, EOFError) as error:
            lack = processes.shortage(error) or f"data loading processes cannot be started ({error}); run again"
            raise UserError(lack) from error


def _start_servers() -> None:
    """Start the processes that fork and clean up for workers, deaf to `JOB_SIGNALS`: they end with the main one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    resource_tracker.ensure_running()  # lets SIGTERM through again
    signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:
    """DataLoader limits torch to one thread in each worker; OpenCV is told here.

    SIGTERM ends a worker half a minute later, if the main process has not. It ends with the main process also where
    that was killed: torch's own watch looks at the process that forked it.
    """
    tune()
    processes.end_with_the_main_process()
    Queue._on_queue_feeder_error = _say_instead  # type: ignore[attr-defined]
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)


def _say_instead(queue: Any, error: Exception, item: tuple[int, Any]) -> None:
    """Called in a worker where a batch cannot be sent: else it would be dropped, and waited for without end."""
    with contextlib.suppress(ValueError):  # the queue is closed: the main process has heard of it, and ends the workers
        queue.put((item[0], UserError(processes.shortage(error) or f"a batch could not be handed over ({error})")))


@contextlib.contextmanager
def workers_watched() -> Iterator[None]:
    """Around the use of loaders: an error ends the workers; the death of one, noticed anywhere, is a UserError."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # whose variables would keep the workers alive
        text = str(error)
        if not (isinstance(error, RuntimeError) and text.startswith(WORKER_DIED)):
            raise
        if lack := processes.shortage(error):
            raise UserError(lack) from error
        raise UserError(
            f"a data loading process died ({text.splitlines()[0].rstrip('. ')}), most often killed by the system for "
            "want of memory; lower data.workers or ask for more memory, and the same command goes on"
        ) from error


def train_batches(
    config: DataConfig,
    seed: int,
    start_step: int,
    *,
    use_target: bool,
    with_labels: bool = True,
    pseudo_labels: bool = False,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
) -> Iterator[Batch]:
    """Endless training batches from update `start_step` on: `accumulate` micro-batches per update.

    A batch holds `batch_size / (world * accumulate)` images per domain. The concatenation over
    micro-batches and ranks is the global batch, whatever the split. Without `with_labels` the source's are not looked
    for, and every pixel is ignored. Without `use_target` the target root is not touched; target labels are never
    listed or opened, except, with `pseudo_labels`, those that `da label` wrote.

    Raises:
        UserError: a root, split or label is missing, or `batch_size` cannot be shared out. While iterating:
            a file cannot be decoded, holds unknown ids, or images of one batch differ in size.
    """
    check_batch_size(config, world, accumulate)
    streams = [_Stream(config.source, config.classes, "source", seed, with_labels)]
    if use_target:
        if config.target is None:
            raise UserError("data.target: required, the method adapts to a target domain")
        for entry in config.target if pseudo_labels else ():
            require_pseudo_labels(entry, config.classes)
        streams.append(_Stream(config.target, config.classes, "target", seed, with_labels=pseudo_labels))
    batches = GlobalBatches(config.batch_size, start_step, rank, world, accumulate)
    loaded: Loaded[Batch] = Loaded(_TrainingData(streams), config.workers, batch_sampler=batches, collate_fn=_collate)
    return iter(loaded)


def require_pseudo_labels(config: DomainConfig, classes: LabelSpace) -> None:
    """
    Raises:
        UserError: the labels of this root are not said to be a segmenter's, or are in other classes.
    """
    root = resolve_root(config)
    stamp = folders.read_stamp(root, folders.PSEUDO_STAMP)
    if not stamp:
        raise UserError(
            f"data.target: {root} holds no {folders.PSEUDO_STAMP}, and the labels of a target are never learned from; "
            "python -m da label RUN OUT writes pseudo labels: data.target.dataset=folders data.target.root=OUT"
        )
    if differs := classes.difference(label_space(stamp["classes"])):
        raise UserError(f"data.target: the pseudo labels of {root} are in other classes ({differs}); label anew")


def check_batch_size(config: DataConfig, world: int, accumulate: int) -> None:
    """
    Raises:
        UserError: `batch_size` cannot be shared out.
    """
    if config.batch_size % (world * accumulate):
        raise UserError(
            f"data.batch_size: {config.batch_size} cannot be shared by {world} processes with {accumulate} "
            f"micro-batches each; make it a multiple of {world * accumulate}"
        )


def val_samples(
    config: FolderConfig,
    classes: LabelSpace,
    rank: int = 0,
    world: int = 1,
    workers: int = 2,
    with_labels: bool = True,
) -> Loaded[ValSample]:
    """Every `world`-th validation sample from `rank` on, image and label each at its file's own size.

    Nothing is resized here: the evaluation protocol decides the input size. Can be iterated again and again.
    Without labels, none is looked for and every pixel is ignored.

    Raises:
        UserError: the root, split or a label is missing. While iterating: a file cannot be decoded.
    """
    samples = folders.find(config.dataset).index(resolve_root(config), config.split, with_labels)
    own = samples[rank::world]
    return Loaded(_ValData(config.dataset, classes, own), workers if own else 0, batch_size=None)


class _Images(Dataset[Any]):
    def __init__(self, samples: list[folders.Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[folders.Sample, torch.Tensor] | UserError:
        try:
            return self.samples[i], _to_tensor(folders.read_image(self.samples[i].image))
        except UserError as error:
            return error


def plain_images(samples: list[folders.Sample], workers: int = 2) -> Loaded[tuple[folders.Sample, torch.Tensor]]:
    """Every sample with its image as it is on disk, (3, H, W) uint8 RGB, in order.

    Raises:
        UserError: while iterating: a file cannot be decoded.
    """
    return Loaded(_Images(samples), workers, batch_size=None)
